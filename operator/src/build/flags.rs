//! Command lines of the stock components.

/// Flags with their values, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Flags {
    list: Vec<(&'static str, String)>,
}

impl Flags {
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<String>) -> &mut Self {
        self.list.push((name, value.into()));
        self
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.list.iter().map(|(name, _)| *name).collect()
    }

    fn without(self, args: &[String]) -> Self {
        let mut list = self.list;
        list.retain(|(name, _)| !args.iter().any(|arg| flag_name(arg) == *name));
        Self { list }
    }

    fn into_args(self) -> impl Iterator<Item = String> {
        self.list.into_iter().map(|(name, value)| format!("--{name}={value}"))
    }
}

/// The whole command line: flags that a user can't change, flags that give way to the user's,
/// feature gates (`Name=true`) that give way one by one, then the user's `extra`.
pub(super) fn command_line(
    managed: Flags,
    tunable: Flags,
    gates: &[&str],
    extra: &[String],
) -> Vec<String> {
    const GATES: &str = "feature-gates";
    let chosen: Vec<&String> = extra.iter().filter(|arg| flag_name(arg) == GATES).collect();
    let gates: Vec<&str> = gates
        .iter()
        .filter(|gate| {
            let name = gate.split_once('=').map_or(**gate, |(name, _)| name);
            !chosen.iter().any(|arg| mentions(arg, name))
        })
        .copied()
        .collect();
    let gates = (!gates.is_empty()).then(|| format!("--{GATES}={}", gates.join(",")));
    managed
        .into_args()
        .chain(tunable.without(extra).into_args())
        .chain(gates)
        .chain(extra.iter().cloned())
        .collect()
}

fn flag_name(arg: &str) -> &str {
    let flag = arg.trim_start_matches("--");
    flag.split_once('=').map_or(flag, |(name, _)| name)
}

/// Whether a gate of the stage alpha is opened by the user's `extra`.
pub(super) fn opens(extra: &[String], gate: &str) -> bool {
    let gates = extra.iter().filter(|arg| flag_name(arg) == "feature-gates");
    let items = gates.filter_map(|arg| arg.split_once('=')).flat_map(|(_, all)| all.split(','));
    let pairs: Vec<_> = items
        .filter_map(|item| item.split_once('='))
        .map(|(name, value)| (name.trim().trim_start_matches("kube:"), value.trim()))
        .collect();
    let named = |name| pairs.iter().rfind(|(known, _)| *known == name);
    let value = named(gate).or_else(|| named("AllAlpha")).map(|(_, value)| *value);
    // As Go's `strconv.ParseBool`.
    matches!(value, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Whether the argument `--feature-gates=A=true,kube:B=false` says something of a gate.
fn mentions(arg: &str, gate: &str) -> bool {
    let value = arg.split_once('=').map_or("", |(_, value)| value);
    value.split(',').any(|item| {
        let item = item.trim();
        let item = item.split_once(':').map_or(item, |(_, item)| item);
        item.split_once('=').map_or(item, |(name, _)| name) == gate
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_that_are_open() {
        let open = |args: &[&str]| {
            let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
            opens(&args, "A")
        };
        assert!(open(&["--feature-gates=B=false,A=true"]));
        assert!(open(&["--v=2", "--feature-gates=kube:A=1"]));
        assert!(open(&["--feature-gates=AllAlpha=true"]));
        for closed in
            ["--feature-gates=AllAlpha=true,A=false", "--feature-gates=B=true", "--A=true"]
        {
            assert!(!open(&[closed]), "{closed}");
        }
    }

    #[test]
    fn tunable_flags_give_way_and_gates_do_so_one_by_one() {
        let mut managed = Flags::default();
        managed.set("secure-port", "6443");
        let mut tunable = Flags::default();
        tunable.set("event-ttl", "15m").set("v", "0");
        let extra = ["--event-ttl=1h", "--feature-gates=kube:B=true,C=true"].map(str::to_owned);
        assert_eq!(
            command_line(managed, tunable, &["A=true", "B=false"], &extra),
            [
                "--secure-port=6443",
                "--v=0",
                "--feature-gates=A=true",
                "--event-ttl=1h",
                "--feature-gates=kube:B=true,C=true",
            ]
        );
    }
}
