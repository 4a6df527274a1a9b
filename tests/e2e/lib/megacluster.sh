# shellcheck shell=bash
# What users do: install the operator, apply a MegaCluster, reach it, give it nodes and pods.
# Sourced after common.sh. The MegaCluster is the one in $sample.
# shellcheck disable=SC2154 # variables from common.sh

sample=${MEGACLUSTER_SAMPLE:-$root/config/samples/small.yaml}

# mega ...: kubectl on the MegaCluster, through its front door.
mega() {
  "$bin/kubectl" --kubeconfig "$mega_kubeconfig" "$@"
}

operator_install() {
  kubectl apply --server-side --force-conflicts -k "$root/config/" >/dev/null
  local namespace
  namespace=$(operator_deployment namespace)
  kubectl --namespace "$namespace" rollout status "deployment/$(operator_deployment name)" --timeout 90s >/dev/null || {
    explain "$namespace"
    die "the operator isn't ready"
  }
}

# operator_deployment name|namespace: of the one Deployment in config/.
operator_deployment() {
  "$bin/kubectl" kustomize "$root/config/" | awk -v field="$1:" '
    /^---/ { kind = "" } /^kind:/ { kind = $2 }
    kind == "Deployment" && /^metadata:/ { inside = 1; next }
    /^[a-z]/ { inside = 0 }
    inside && /^  [a-z]/ && $1 == field { print $2; exit }'
}

# megacluster_apply: applies the sample and waits until it says that it is ready.
# Sets mega_name and mega_namespace.
megacluster_apply() {
  local namespace objects
  namespace=$(awk '/^  namespace:/ { print $2; exit }' "$sample")
  if [[ -n $namespace ]] && ! kubectl get namespace "$namespace" >/dev/null 2>&1; then
    kubectl create namespace "$namespace" >/dev/null
  fi
  objects=$(kubectl apply -f "$sample" -o json |
    jq -r '[if .kind == "List" then .items[] else . end | select(.kind == "MegaCluster")][0]
      | "\(.metadata.namespace) \(.metadata.name)"')
  read -r mega_namespace mega_name <<<"$objects"
  kubectl --namespace "$mega_namespace" wait "megacluster/$mega_name" --for=condition=Ready --timeout=150s >/dev/null || {
    explain "$mega_namespace"
    die "the MegaCluster isn't ready"
  }
}

# megacluster_reach: writes the kubeconfig for this machine. The server has an address in the
# cluster's own network: a port of this machine's loopback leads there, and TLS still checks the
# server's own name. Sets mega_kubeconfig.
megacluster_reach() {
  local address listen server
  mega_kubeconfig=$state/$mega_name.kubeconfig
  address=$mega_name-api.$mega_namespace.svc.cluster.local:$(kubectl --namespace "$mega_namespace" \
    get service "$mega_name-api" -o jsonpath='{.spec.ports[0].port}')
  listen=$(testbed forward "$mega_namespace-$mega_name" "$address")
  kubectl --namespace "$mega_namespace" get secret "$mega_name-admin-kubeconfig" -o jsonpath='{.data.value}' |
    base64 -d >"$mega_kubeconfig.next"
  chmod 600 "$mega_kubeconfig.next"
  server=$("$bin/kubectl" --kubeconfig "$mega_kubeconfig.next" config view --minify -o jsonpath='{.clusters[0].cluster.server}')
  server=${server#https://}
  "$bin/kubectl" --kubeconfig "$mega_kubeconfig.next" config set-cluster \
    "$("$bin/kubectl" --kubeconfig "$mega_kubeconfig.next" config view --minify -o jsonpath='{.clusters[0].name}')" \
    --server="https://$listen" --tls-server-name="${server%%[:/]*}" >/dev/null
  mv "$mega_kubeconfig.next" "$mega_kubeconfig"
  until_true 60 "the MegaCluster's API through its front door" mega get --raw /readyz
}

# kwok_up: kwok with its own stages and ours: a node gets ready and keeps its lease, a pod runs at
# once.
kwok_up() {
  local module configuration checksum
  module=$(cd "$e2e/modules/kwok" && go list -mod=readonly -m -f '{{.Dir}}' sigs.k8s.io/kwok)
  configuration=$(
    printf '%s\n' 'apiVersion: config.kwok.x-k8s.io/v1alpha1' 'kind: KwokConfiguration' \
      'options: {podPlayStageParallelism: 16, nodePlayStageParallelism: 16, nodeLeaseParallelism: 8}'
    for file in "$module"/kustomize/stage/{node/fast,node/heartbeat-with-lease}/node-*.yaml \
      "$module"/kustomize/stage/pod/fast/pod-*.yaml "$e2e/manifests/kwok-stages.yaml"; do
      printf -- '---\n'
      cat "$file"
    done
  )
  kubectl --namespace "$mega_namespace" create configmap kwok-stages --from-file=stages.yaml=/dev/stdin \
    --dry-run=client -o yaml <<<"$configuration" |
    kubectl --namespace "$mega_namespace" apply --server-side -f - >/dev/null
  # Another configuration makes a new pod.
  checksum=$(sha256sum <<<"$configuration" | cut -c1-32)
  sed "s/ADMIN_KUBECONFIG/$mega_name-admin-kubeconfig/; s/CHECKSUM/$checksum/" "$e2e/manifests/kwok.yaml" |
    kubectl --namespace "$mega_namespace" apply --server-side -f - >/dev/null
  kubectl --namespace "$mega_namespace" rollout status deployment/kwok --timeout 60s >/dev/null || {
    explain "$mega_namespace"
    die "kwok isn't ready"
  }
}

# nodes_create COUNT: registers nodes as kubelets would, several at a time; those there are kept.
nodes_create() {
  local count=$1 part parts=4 pids=() status=0
  for ((part = 0; part < parts; part++)); do
    node_manifests "$count" "$part" "$parts" | mega apply --server-side -f - >/dev/null &
    pids+=($!)
  done
  for part in "${pids[@]}"; do
    wait "$part" || status=1
  done
  ((status == 0)) || die "creating nodes failed"
  until_true $((60 + count / 20)) "$count nodes ready" nodes_ready "$count"
}

node_manifests() {
  local number
  for ((number = $2; number < $1; number += $3)); do
    printf -v name 'node-%04d' "$number"
    cat <<END
---
apiVersion: v1
kind: Node
metadata:
  name: $name
  labels:
    kubernetes.io/hostname: $name
    kubernetes.io/os: linux
    kubernetes.io/arch: amd64
    topology.kubernetes.io/region: local
    topology.kubernetes.io/zone: zone-$((number % 3))
status:
  allocatable: {cpu: "32", memory: 256Gi, pods: "110"}
  capacity: {cpu: "32", memory: 256Gi, pods: "110"}
END
  done
}

nodes_ready() {
  local ready
  ready=$(mega get nodes --no-headers | awk '$2 == "Ready"' | wc -l)
  echo "$ready of $1"
  ((ready >= $1))
}

# pods_run COUNT: a Deployment of so many pods.
pods_run() {
  sed "s/replicas: 1000/replicas: $1/" "$e2e/manifests/hello.yaml" | mega apply --server-side -f - >/dev/null
  mega rollout status deployment/hello --timeout $((180 + $1 / 20))s >/dev/null || {
    mega get pods --no-headers | awk '{print $3}' | sort | uniq -c >&2
    mega get events --sort-by=.lastTimestamp | tail -5 >&2
    die "the MegaCluster's pods aren't running"
  }
}

# explain NAMESPACE: what a person would look at first.
explain() {
  {
    kubectl --namespace "$1" get megaclusters.megacluster.io -o json 2>/dev/null | jq -c '.items[] | .metadata.name, (.status.conditions // [])[]'
    kubectl --namespace "$1" get pods -o wide
    kubectl --namespace "$1" get events --sort-by=.lastTimestamp | tail -15
    local pod
    for pod in $(kubectl --namespace "$1" get pods -o json |
      jq -r '.items[] | select(any(.status.conditions[]?; .type == "Ready" and .status != "True")) | .metadata.name'); do
      echo "--- $pod"
      kubectl --namespace "$1" logs "$pod" --all-containers --tail 15
      kubectl --namespace "$1" logs "$pod" --all-containers --tail 15 --previous 2>/dev/null
    done
  } >&2 || true
}
