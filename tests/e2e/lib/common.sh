# shellcheck shell=bash
# What every script here shares: paths, progress lines, deadlines. Sourced first.
# shellcheck disable=SC2034 # the variables are for the scripts that source this
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
e2e=$root/tests/e2e
# Kept from run to run, shared by checkouts: what was built, by content.
cache=${MEGACLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/megacluster}
# The programs and images of this checkout: links into the cache.
built=$root/target/e2e
bin=$built/bin
# The cluster: its name and everything it writes.
cluster=${MEGACLUSTER_NAME:-megacluster}
state=${MEGACLUSTER_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/megacluster}/$cluster

# Ours, each megacluster-NAME: what images are packed of.
own_programs=(operator store watchcache scheduler)

# Scripts that call each other count from the start of the first.
export E2E_STARTED=${E2E_STARTED:-$(date +%s)}

say() {
  printf '[%4ds] %s\n' "$(($(date +%s) - E2E_STARTED))" "$*"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

need_root() {
  [[ $(id -u) == 0 ]] || die "needs root: it makes namespaces, mounts and control groups"
}

# until_true SECONDS WHAT COMMAND...: repeats COMMAND until it succeeds; its last output is the reason.
until_true() {
  local limit=$1 what=$2 out deadline
  shift 2
  deadline=$(($(date +%s) + limit))
  until out=$("$@" 2>&1); do
    if (($(date +%s) >= deadline)); then
      printf 'error: not in %ss: %s\n%s\n' "$limit" "$what" "$out" >&2
      return 1
    fi
    sleep 0.5
  done
}

kubectl() {
  "$bin/kubectl" --kubeconfig "$state/kubeconfig" "$@"
}

testbed() {
  local command=$1
  shift
  "$bin/testbed" "$command" --name "$cluster" --state "$state" "$@"
}
