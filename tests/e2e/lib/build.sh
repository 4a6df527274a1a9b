# shellcheck shell=bash
# Builds programs once for each content of their sources. Sourced after common.sh.
# shellcheck disable=SC2154 # bin, cache: from common.sh

report_seconds=20

# with_progress WHAT COMMAND...: runs COMMAND with its output in a log; says now and then how far
# it is, and shows the end of the log if it fails. Each line of the log is one package compiled.
with_progress() {
  local what=$1 log pid status=0 started
  shift
  started=$(date +%s)
  log=$(mktemp)
  "$@" >"$log" 2>&1 &
  pid=$!
  while sleep 1 && kill -0 "$pid" 2>/dev/null; do
    local seconds=$(($(date +%s) - started))
    if ((seconds % report_seconds == 0)); then
      say "building $what: ${seconds}s, $(wc -l <"$log") packages compiled"
    fi
  done
  wait "$pid" || status=$?
  if ((status != 0)); then
    tail -40 "$log" >&2
    rm -f "$log"
    die "building $what failed"
  fi
  rm -f "$log"
  say "built $what in $(($(date +%s) - started))s"
}

# go_programs MODULE LDFLAGS NAME=PACKAGE...: builds programs of one module into the cache and
# links them into $bin. The key holds all that goes in: go.sum pins every dependency's content.
go_programs() {
  local module=$1 ldflags=$2 key target pair stage
  shift 2
  key=$(
    cd "$module" || exit 1
    {
      go env GOVERSION GOOS GOARCH
      printf '%s\n' "$ldflags" "$@"
      find . -type f \( -name '*.go' -o -name 'go.*' -o -path '*/files/*' \) -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c1-32
  )
  target=$cache/programs/$key
  if [[ ! -d $target ]]; then
    mkdir -p "$cache/programs"
    stage=$(mktemp -d "$cache/programs/.stage.XXXXXX")
    with_progress "$(basename "$module")" go_build "$module" "$ldflags" "$stage" "$@"
    # Another checkout may have been as quick: then its files are the same.
    mv -T "$stage" "$target" 2>/dev/null || rm -rf "$stage"
  fi
  touch "$target"
  for pair in "$@"; do
    ln -sfn "$target/${pair%%=*}" "$bin/${pair%%=*}"
  done
}

go_build() {
  local module=$1 ldflags=$2 stage=$3 pair packages=()
  shift 3
  for pair in "$@"; do
    packages+=("${pair#*=}")
  done
  cd "$module" || exit 1
  export CGO_ENABLED=0 GOFLAGS='' GOWORK=off
  go build -v -trimpath -buildvcs=false -mod=readonly -ldflags "-s -w $ldflags" -o "$stage/" "${packages[@]}"
  for pair in "$@"; do
    # Go names a program after its package's path, less a last element like v3.
    local path=${pair#*=}
    local built_name=${path%/v[0-9]}
    built_name=${built_name##*/}
    [[ $built_name == "${pair%%=*}" ]] || mv "$stage/$built_name" "$stage/${pair%%=*}"
  done
  chmod 755 "$stage"
}

# required MODULE PATH: the version that a module's go.mod asks for.
required() {
  awk -v path="$2" '{ sub(/^require /, ""); sub(/^\t/, "") } $1 == path { print $2; exit }' "$1/go.mod"
}

# forget_unused DIRECTORY: removes cache entries that no run has used for two weeks.
forget_unused() {
  find "$1" -mindepth 1 -maxdepth 1 -mtime +14 -exec rm -rf {} +
}
