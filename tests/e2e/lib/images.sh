# shellcheck shell=bash
# Packs images, each of one static program, and hands them to the cluster. Sourced after common.sh.
# shellcheck disable=SC2154,SC2034 # variables from and for other scripts

own_registry=megacluster.test
own_tag=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")
own_source=$(sed -n '/^\[workspace.package\]/,/^\[/s/^repository = "\(.*\)"/\1/p' "$root/Cargo.toml")
kubernetes_registry=registry.k8s.io
# Names and archives of the last packing. A script that wants fewer images has a list of its own.
images_list=${E2E_IMAGES_LIST:-$built/images}

# pack IMAGE PROGRAM PATH LABEL...: packs the image if its content is new, and notes it in
# $images_list: name, archive, both together say whether a cluster has it already.
pack() {
  local image=$1 program=$2 path=$3 key archive label labels=()
  shift 3
  for label in "$@"; do
    labels+=(--label "$label")
  done
  key=$({
    printf '%s\n' "$image" "$path" "$@"
    sha256sum <"$bin/$program"
    cat "$e2e/testbed/pack/pack.go" "$e2e/testbed/go.sum"
  } | sha256sum | cut -c1-32)
  archive=$cache/images/$key.tar
  if [[ ! -e $archive ]]; then
    "$bin/testbed" pack --image "$image" --program "$bin/$program" --path "$path" "${labels[@]}" --output "$archive"
    say "packed $image"
  fi
  touch "$archive"
  printf '%s\t%s\n' "$image" "$archive" >>"$images_list.next"
}

# import_images: hands the cluster the images it hasn't yet, under the names users would pull. Pods
# that run an image whose content has changed are made anew: their name for it hasn't changed.
import_images() {
  local image archive mark socket imported=$state/images replaced=()
  socket=/proc/$(cut -d' ' -f1 "$state/node.pid")/root/run/containerd/containerd.sock
  mkdir -p "$imported"
  while IFS=$'\t' read -r image archive; do
    mark=$imported/${image//[\/:]/_}
    if [[ $(cat "$mark" 2>/dev/null) != "$archive" ]]; then
      timeout 120 ctr --address "$socket" --namespace k8s.io images import "$archive" >/dev/null
      [[ ! -e $mark ]] || replaced+=("$image")
      echo "$archive" >"$mark"
      say "imported $image"
    fi
  done <"$images_list"
  for image in "${replaced[@]}"; do
    kubectl get pods --all-namespaces -o json | jq -r --arg image "$image" '.items[]
      | select(any(.spec.containers[]; .image == $image)) | "\(.metadata.namespace) \(.metadata.name)"' |
      while read -r namespace pod; do
        say "making pod $namespace/$pod anew"
        kubectl --namespace "$namespace" delete pod "$pod" --wait=false >/dev/null
      done
  done
}
