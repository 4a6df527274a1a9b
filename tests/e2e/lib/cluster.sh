# shellcheck shell=bash
# Starts the management cluster with what every cluster has: images, DNS, a default StorageClass.
# Sourced after common.sh and images.sh.
# shellcheck disable=SC2154 # variables from common.sh

# Further flags of `testbed start`.
cluster_flags=()

cluster_up() {
  local line
  say "management cluster '$cluster': starting (files and logs: $state)"
  testbed start --programs "$bin" --timeout 3m "${cluster_flags[@]}" | while IFS= read -r line; do
    say "  $line"
  done
  import_images
  kubectl apply --server-side --force-conflicts -f "$e2e/manifests/coredns.yaml" -f "$e2e/manifests/storage.yaml" >/dev/null
  for line in coredns provisioner; do
    kubectl --namespace kube-system rollout status "deployment/$line" --timeout 90s >/dev/null || {
      kubectl --namespace kube-system describe pods >&2
      die "deployment $line isn't ready"
    }
  done
  say "management cluster ready: node, DNS, default StorageClass"
}
