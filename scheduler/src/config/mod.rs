//! `KubeSchedulerConfiguration` v1, as far as it is supported. A field that is not supported is
//! refused by its path, never accepted and ignored: a profile that switches a plugin off must not
//! run with the plugin on.
//!
//! Field names and defaults: `k8s.io/kube-scheduler/config/v1/types.go` and
//! `k8s.io/component-base/config/v1alpha1/types.go`.

mod arguments;
mod profile;

pub use profile::Profile;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::core::policy::{DEFAULT_PROFILE, Policy};

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no YAML.
    #[error("not a YAML document: {0}")]
    Yaml(String),
    /// A field asks for something this scheduler doesn't do.
    #[error("{field}: not supported{detail}")]
    Unsupported {
        /// Path of the field, `profiles[0].plugins` for example.
        field: String,
        /// What would be supported, where that helps.
        detail: String,
    },
    /// A field has the wrong type or an impossible value.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

/// What the file says; `None` where it says nothing, so that flags and defaults apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// `profiles`; none for a single one with all defaults.
    pub profiles: Vec<Profile>,
    /// `percentageOfNodesToScore`, for profiles that don't say it themselves.
    pub sample: Option<u8>,
    /// `clientConnection.kubeconfig`
    pub kubeconfig: Option<PathBuf>,
    /// `leaderElection.leaderElect`
    pub leader_elect: Option<bool>,
    /// `leaderElection.resourceNamespace`
    pub lease_namespace: Option<String>,
    /// `leaderElection.resourceName`
    pub lease_name: Option<String>,
    /// `leaderElection.leaseDuration`
    pub lease_duration: Option<Duration>,
    /// `leaderElection.renewDeadline`
    pub renew_deadline: Option<Duration>,
    /// `leaderElection.retryPeriod`
    pub retry_period: Option<Duration>,
    /// `podInitialBackoffSeconds`
    pub initial_backoff: Option<Duration>,
    /// `podMaxBackoffSeconds`
    pub max_backoff: Option<Duration>,
}

impl SchedulerConfig {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Parses the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document: Value =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::Yaml(error.to_string()))?;
        let mut config = Self::default();
        let (mut api_version, mut kind) = (None, None);
        each(&document, "", |key, field, value| {
            match key {
                "apiVersion" => api_version = Some(string(value, field)?),
                "kind" => kind = Some(string(value, field)?),
                "profiles" => config.profiles(value, field)?,
                "leaderElection" => config.leader_election(value, field)?,
                "clientConnection" => config.client_connection(value, field)?,
                "podInitialBackoffSeconds" => {
                    config.initial_backoff = Some(seconds(value, field)?);
                }
                "podMaxBackoffSeconds" => config.max_backoff = Some(seconds(value, field)?),
                "percentageOfNodesToScore" => config.sample = percentage(value, field)?,
                "parallelism" => only(value, field, &[json!(16)])?,
                "enableProfiling" | "enableContentionProfiling" => {
                    only(value, field, &[json!(true)])?;
                }
                "delayCacheUntilActive" => only(value, field, &[json!(false)])?,
                "extenders" => only(value, field, &[Value::Null, json!([])])?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        expect(api_version.as_deref(), "kubescheduler.config.k8s.io/v1", "apiVersion")?;
        expect(kind.as_deref(), "KubeSchedulerConfiguration", "kind")?;
        if let (Some(initial), Some(max)) = (config.initial_backoff, config.max_backoff)
            && max < initial
        {
            return Err(ConfigError::Invalid {
                field: "podMaxBackoffSeconds".to_owned(),
                problem: "less than podInitialBackoffSeconds".to_owned(),
            });
        }
        Ok(config)
    }

    fn profiles(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        let Value::Array(profiles) = value else { return Err(wrong(field, "a list")) };
        for (index, profile) in profiles.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let mut read = Profile::default();
            each(profile, &field, |key, field, value| {
                match key {
                    "schedulerName" => read.scheduler_name = Some(string(value, field)?),
                    "plugins" => read.plugins(value, field)?,
                    "pluginConfig" => read.arguments(value, field)?,
                    "percentageOfNodesToScore" => {
                        read.policy.sample = percentage(value, field)?;
                        read.own_sample = true;
                    }
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            // `ValidateKubeSchedulerConfiguration`: the default name is a single profile's alone.
            let field = format!("{field}.schedulerName");
            if profiles.len() > 1 && read.scheduler_name.is_none() {
                return Err(wrong(&field, "given where there are several profiles"));
            }
            if self.profiles.iter().any(|other| other.scheduler_name == read.scheduler_name) {
                return Err(wrong(&field, "another name than the other profiles'"));
            }
            self.profiles.push(read);
        }
        Ok(())
    }

    /// What the profiles say, at least one, each under its name. `scheduler_name`, if it is given,
    /// is the first one's.
    #[must_use]
    pub fn policies(&self, scheduler_name: Option<&str>) -> Vec<Arc<Policy>> {
        let one = [Profile::default()];
        let profiles = if self.profiles.is_empty() { &one[..] } else { &self.profiles };
        let policy = |(index, profile): (usize, &Profile)| {
            let given = scheduler_name.filter(|_| index == 0);
            let name = given.or(profile.scheduler_name.as_deref()).unwrap_or(DEFAULT_PROFILE);
            let sample = if profile.own_sample { profile.policy.sample } else { self.sample };
            Arc::new(Policy { profile: name.into(), sample, ..profile.policy.clone() })
        };
        profiles.iter().enumerate().map(policy).collect()
    }

    fn leader_election(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        each(value, field, |key, field, value| {
            match key {
                "leaderElect" => match value {
                    Value::Bool(elect) => self.leader_elect = Some(*elect),
                    _ => return Err(wrong(field, "true or false")),
                },
                "leaseDuration" => self.lease_duration = Some(duration(value, field)?),
                "renewDeadline" => self.renew_deadline = Some(duration(value, field)?),
                "retryPeriod" => self.retry_period = Some(duration(value, field)?),
                "resourceName" => self.lease_name = Some(string(value, field)?),
                "resourceNamespace" => self.lease_namespace = Some(string(value, field)?),
                "resourceLock" => {
                    if string(value, field)? != "leases" {
                        return Err(unsupported(field, ": only leases"));
                    }
                }
                _ => return Ok(false),
            }
            Ok(true)
        })
    }

    fn client_connection(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        each(value, field, |key, field, value| {
            match key {
                "kubeconfig" if value.as_str() == Some("") => {}
                "kubeconfig" => self.kubeconfig = Some(PathBuf::from(string(value, field)?)),
                "acceptContentTypes" => only(value, field, &[json!("")])?,
                // What is spoken with the apiserver is no one's concern, but a limit is.
                "contentType" => {
                    string(value, field)?;
                }
                "qps" => only(value, field, &[json!(50)])?,
                "burst" => only(value, field, &[json!(100)])?,
                _ => return Ok(false),
            }
            Ok(true)
        })
    }
}

/// Calls `take` for each field of an object; a field that it doesn't take is refused by its path.
fn each(
    value: &Value,
    path: &str,
    mut take: impl FnMut(&str, &str, &Value) -> Result<bool, ConfigError>,
) -> Result<(), ConfigError> {
    let empty = Map::new();
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Null => &empty,
        _ => return Err(wrong(if path.is_empty() { "document" } else { path }, "a mapping")),
    };
    for (key, value) in fields {
        let field = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if !take(key, &field, value)? {
            return Err(ConfigError::Unsupported { field, detail: String::new() });
        }
    }
    Ok(())
}

fn unsupported(field: &str, detail: &str) -> ConfigError {
    ConfigError::Unsupported { field: field.to_owned(), detail: detail.to_owned() }
}

fn list<'a>(value: &'a Value, field: &str) -> Result<&'a [Value], ConfigError> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Null => Ok(&[]),
        _ => Err(wrong(field, "a list")),
    }
}

/// Takes no other values than these.
fn only(value: &Value, field: &str, allowed: &[Value]) -> Result<(), ConfigError> {
    if allowed.contains(value) {
        return Ok(());
    }
    let texts: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    Err(unsupported(field, &format!(": only {}", texts.join(" or "))))
}

fn wrong(field: &str, wanted: &str) -> ConfigError {
    ConfigError::Invalid { field: field.to_owned(), problem: format!("must be {wanted}") }
}

fn expect(found: Option<&str>, wanted: &str, field: &str) -> Result<(), ConfigError> {
    if found == Some(wanted) { Ok(()) } else { Err(wrong(field, wanted)) }
}

fn string(value: &Value, field: &str) -> Result<String, ConfigError> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(wrong(field, "a text that is not empty")),
    }
}

fn seconds(value: &Value, field: &str) -> Result<Duration, ConfigError> {
    match value.as_u64() {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong(field, "a whole number of seconds above 0")),
    }
}

/// A sample of the nodes is a mode of its own: without a percentage, and with 0 or 100, all are
/// looked at.
fn percentage(value: &Value, field: &str) -> Result<Option<u8>, ConfigError> {
    let percent = value.as_u64().and_then(|percent| u8::try_from(percent).ok());
    match percent {
        Some(0 | 100) => Ok(None),
        Some(percent @ 1..100) => Ok(Some(percent)),
        _ => Err(wrong(field, "a number from 0 to 100")),
    }
}

fn duration(value: &Value, field: &str) -> Result<Duration, ConfigError> {
    let parsed = value.as_str().and_then(parse_duration);
    parsed.ok_or_else(|| wrong(field, "a duration such as 15s or 1m30s"))
}

/// A duration as Go writes it, in the units that are of use here: `15s`, `1m30s`, `500ms`. Not
/// zero.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let each = match &rest[..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return None,
        };
        rest = &rest[unit..];
        total = total.checked_add(each.checked_mul(number)?)?;
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::diagnosis::Plugin;

    const HEAD: &str =
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    fn parse(body: &str) -> Result<SchedulerConfig, ConfigError> {
        SchedulerConfig::parse(&format!("{HEAD}{body}"))
    }

    #[test]
    fn reads_what_is_supported() {
        let config = parse(
            "clientConnection: {kubeconfig: /etc/k}\n\
             leaderElection: {leaderElect: true, leaseDuration: 15s, renewDeadline: 1m30s, \
             retryPeriod: 500ms, resourceLock: leases, resourceName: lock, resourceNamespace: ns}\n\
             podInitialBackoffSeconds: 2\npodMaxBackoffSeconds: 20\n\
             profiles: [{schedulerName: mine, percentageOfNodesToScore: 100}]\n",
        )
        .expect("supported");
        assert_eq!(config.profiles[0].scheduler_name.as_deref(), Some("mine"));
        assert_eq!(&*config.policies(None)[0].profile, "mine");
        assert_eq!(&*config.policies(Some("other"))[0].profile, "other");
        assert_eq!(config.kubeconfig, Some(PathBuf::from("/etc/k")));
        assert_eq!(config.leader_elect, Some(true));
        assert_eq!(config.lease_duration, Some(Duration::from_secs(15)));
        assert_eq!(config.renew_deadline, Some(Duration::from_secs(90)));
        assert_eq!(config.retry_period, Some(Duration::from_millis(500)));
        assert_eq!(config.lease_name.as_deref(), Some("lock"));
        assert_eq!(config.lease_namespace.as_deref(), Some("ns"));
        assert_eq!(config.initial_backoff, Some(Duration::from_secs(2)));
        assert_eq!(config.max_backoff, Some(Duration::from_secs(20)));
        assert_eq!(parse("").expect("empty"), SchedulerConfig::default());
    }

    #[test]
    fn reads_a_profile() {
        let profile = &parse(
            "profiles: [{plugins: {multiPoint: {disabled: [{name: NodePorts}], \
             enabled: [{name: NodeAffinity, weight: 7}, {name: InterPodAffinity}]}, \
             score: {disabled: [{name: '*'}], enabled: [{name: ImageLocality, weight: 4}]}}, \
             pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 50}}, \
             {name: PodTopologySpread, args: {defaultingType: List}}]}]\n",
        )
        .expect("supported")
        .profiles[0];
        assert!(!profile.policy.filters.contains(Plugin::NodePorts));
        assert!(profile.policy.filters.contains(Plugin::NodeAffinity));
        let weights = profile.policy.weights;
        assert_eq!((weights.affinity, weights.preferences, weights.images), (0, 0, 4));
        assert_eq!(profile.policy.hard_pod_affinity_weight, 50);
        assert!(profile.policy.default_spread.soft.is_empty());
    }

    /// What `kube-scheduler --write-config-to` writes for an empty file.
    #[test]
    fn reads_what_kube_scheduler_writes() {
        let config = parse(
            "clientConnection: {acceptContentTypes: \"\", burst: 100, contentType: \
             application/vnd.kubernetes.protobuf, kubeconfig: \"\", qps: 50}\n\
             enableContentionProfiling: true\nenableProfiling: true\nparallelism: 16\n\
             leaderElection: {leaderElect: true, leaseDuration: 15s, renewDeadline: 10s, \
             resourceLock: leases, resourceName: kube-scheduler, resourceNamespace: kube-system, \
             retryPeriod: 2s}\n\
             percentageOfNodesToScore: 0\npodInitialBackoffSeconds: 1\npodMaxBackoffSeconds: 10\n\
             profiles: [{schedulerName: default-scheduler, plugins: {bind: {}, filter: {}, \
             permit: {}, postBind: {}, postFilter: {}, preBind: {}, preEnqueue: {}, preFilter: {}, \
             preScore: {}, queueSort: {}, reserve: {}, score: {}, multiPoint: {enabled: [\
             {name: SchedulingGates, weight: 0}, {name: PrioritySort, weight: 0}, \
             {name: NodeUnschedulable, weight: 0}, {name: NodeName, weight: 0}, \
             {name: TaintToleration, weight: 3}, {name: NodeAffinity, weight: 2}, \
             {name: NodePorts, weight: 0}, {name: NodeResourcesFit, weight: 1}, \
             {name: VolumeRestrictions, weight: 0}, {name: NodeVolumeLimits, weight: 0}, \
             {name: VolumeBinding, weight: 0}, {name: VolumeZone, weight: 0}, \
             {name: PodTopologySpread, weight: 2}, {name: InterPodAffinity, weight: 2}, \
             {name: DynamicResources, weight: 2}, {name: DefaultPreemption, weight: 0}, \
             {name: NodeResourcesBalancedAllocation, weight: 1}, {name: ImageLocality, weight: 1}, \
             {name: DefaultBinder, weight: 0}]}}, pluginConfig: [\
             {name: DefaultPreemption, args: {apiVersion: kubescheduler.config.k8s.io/v1, \
             kind: DefaultPreemptionArgs, minCandidateNodesAbsolute: 100, \
             minCandidateNodesPercentage: 10}}, \
             {name: DynamicResources, args: {filterTimeout: 10s}}, \
             {name: InterPodAffinity, args: {hardPodAffinityWeight: 1, \
             ignorePreferredTermsOfExistingPods: false}}, \
             {name: NodeAffinity, args: {kind: NodeAffinityArgs}}, \
             {name: NodeResourcesBalancedAllocation, args: {resources: [{name: cpu, weight: 1}, \
             {name: memory, weight: 1}]}}, \
             {name: NodeResourcesFit, args: {scoringStrategy: {resources: [{name: cpu, weight: 1}, \
             {name: memory, weight: 1}], type: LeastAllocated}}}, \
             {name: PodTopologySpread, args: {defaultingType: System}}, \
             {name: VolumeBinding, args: {bindTimeoutSeconds: 600}}]}]\n",
        )
        .expect("the default");
        assert_eq!(config.policies(None), SchedulerConfig::default().policies(None));
        assert_eq!(config.kubeconfig, None);
        let config = parse(
            "profiles: [{pluginConfig: [{name: VolumeBinding, args: {bindTimeoutSeconds: 30}}]}]\n",
        )
        .expect("supported");
        assert_eq!(config.policies(None)[0].bind_timeout, Duration::from_secs(30));
    }

    #[test]
    fn a_profile_samples_nodes_as_it_says_or_as_all_do() {
        let samples = |body: &str| -> Vec<Option<u8>> {
            let policies = parse(body).expect("supported").policies(None);
            policies.iter().map(|policy| policy.sample).collect()
        };
        assert_eq!(samples("percentageOfNodesToScore: 30\n"), [Some(30)]);
        assert_eq!(samples("percentageOfNodesToScore: 100\n"), [None]);
        assert_eq!(samples("percentageOfNodesToScore: 0\n"), [None]);
        let two = "percentageOfNodesToScore: 30\nprofiles: [{schedulerName: a}, \
                   {schedulerName: b, percentageOfNodesToScore: 5}, \
                   {schedulerName: c, percentageOfNodesToScore: 100}]\n";
        assert_eq!(samples(two), [Some(30), Some(5), None]);
    }

    #[test]
    fn names_the_field_it_refuses() {
        for (body, field) in [
            ("parallelism: 8\n", "parallelism: not supported: only 16"),
            (
                "profiles: [{plugins: {bind: {enabled: [{name: Mine}]}}}]\n",
                "profiles[0].plugins.bind: not supported",
            ),
            (
                "profiles: [{plugins: {filter: {disabled: [{name: '*'}]}}}]\n",
                "profiles[0].plugins.filter: not supported",
            ),
            (
                "profiles: [{plugins: {multiPoint: {enabled: [{name: Mine}]}}}]\n",
                "profiles[0].plugins.multiPoint.enabled: not supported: Mine",
            ),
            (
                "profiles: [{plugins: {multiPoint: {disabled: [{name: DynamicResources}]}}}]\n",
                "profiles[0].plugins.multiPoint.disabled: not supported: DynamicResources; pods",
            ),
            (
                "profiles: [{plugins: {multiPoint: {disabled: [{name: '*'}]}}}]\n",
                "profiles[0].plugins.multiPoint.disabled: not supported: * without",
            ),
            (
                "profiles: [{plugins: {multiPoint: {disabled: [{name: NodeAffinity}], \
                 enabled: [{name: NodeAffinity}]}}}]\n",
                "profiles[0].plugins.multiPoint.enabled: not supported: another order",
            ),
            (
                "profiles: [{plugins: {score: {enabled: [{name: NodeName}]}}}]\n",
                "profiles[0].plugins.score.enabled: not supported: NodeName has no score",
            ),
            (
                "profiles: [{plugins: {multiPoint: {disabled: [{name: ImageLocality}]}, \
                 score: {enabled: [{name: ImageLocality}]}}}]\n",
                "profiles[0].plugins.score.enabled: not supported: ImageLocality is off",
            ),
            (
                "profiles: [{pluginConfig: [{name: NodeName, args: {}}]}]\n",
                "profiles[0].pluginConfig[0].args: not supported: of NodeName",
            ),
            (
                "profiles: [{pluginConfig: [{name: NodeAffinity, args: {addedAffinity: {}}}]}]\n",
                "profiles[0].pluginConfig[0].args.addedAffinity: not supported: only null",
            ),
            (
                "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: \
                 {type: MostAllocated}}}]}]\n",
                "profiles[0].pluginConfig[0].args.scoringStrategy.type: not supported: only",
            ),
            (
                "profiles: [{pluginConfig: [{name: VolumeBinding, args: {bindTimeoutSeconds: -1}}]}]\n",
                "profiles[0].pluginConfig[0].args.bindTimeoutSeconds: must be",
            ),
            (
                "profiles: [{pluginConfig: [{name: VolumeBinding, args: {shape: [{utilization: 0, \
                 score: 10}]}}]}]\n",
                "profiles[0].pluginConfig[0].args.shape: not supported: only null",
            ),
            (
                "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {more: 1}}]}]\n",
                "profiles[0].pluginConfig[0].args.more: not supported",
            ),
            (
                "profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultConstraints: \
                 [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule}]}}]}]\n",
                "profiles[0].pluginConfig[0].args.defaultConstraints: must be empty",
            ),
            ("profiles: [{}, {}]\n", "profiles[0].schedulerName: must be given"),
            (
                "profiles: [{schedulerName: a}, {schedulerName: a}]\n",
                "profiles[1].schedulerName: must be another name",
            ),
            ("extenders: [{urlPrefix: x}]\n", "extenders: not supported: only"),
            ("clientConnection: {qps: 5}\n", "clientConnection.qps: not supported"),
            ("percentageOfNodesToScore: 101\n", "percentageOfNodesToScore: must be"),
            ("percentageOfNodesToScore: few\n", "percentageOfNodesToScore: must be"),
            ("leaderElection: {resourceLock: endpoints}\n", "leaderElection.resourceLock: not"),
            ("leaderElection: {leaseDuration: 15}\n", "leaderElection.leaseDuration: must be"),
            ("leaderElection: {leaseDuration: -1s}\n", "leaderElection.leaseDuration: must be"),
            ("podMaxBackoffSeconds: 0\n", "podMaxBackoffSeconds: must be"),
            (
                "podInitialBackoffSeconds: 9\npodMaxBackoffSeconds: 1\n",
                "podMaxBackoffSeconds: less",
            ),
        ] {
            let error = parse(body).expect_err(body).to_string();
            assert!(error.starts_with(field), "{body}: {error}");
        }
        assert!(SchedulerConfig::parse("kind: Pod").is_err());
        assert!(SchedulerConfig::parse("- 1").is_err());
        assert!(SchedulerConfig::parse("{").is_err());
    }
}
