#!/usr/bin/env bash
# disagg on kind, from the sources of this repository.
#
#   deploy/kind.sh up      build the images, make the cluster, load them, install the chart, apply the demo
#   deploy/kind.sh load    build the images and load them into the cluster that is there
#   deploy/kind.sh down    delete the cluster
#
# Needs docker, kind, kubectl and helm. The environment may set:
#
#   KIND_CLUSTER   name of the cluster                          [disagg]
#   TAG            tag of the images                            [dev]
#   ARCHIVES       folder of ready archives (docker save), one for each image, to load instead of building
#   SAMPLE         the DisaggDeployment that `up` applies       [deploy/samples/demo.yaml]
#   TIMEOUT        longest wait for each thing to be ready      [300s]
set -euo pipefail
cd "$(dirname "$0")/.."

cluster=${KIND_CLUSTER:-disagg}
tag=${TAG:-dev}
archives=${ARCHIVES:-}
folder=
sample=${SAMPLE:-deploy/samples/demo.yaml}
timeout=${TIMEOUT:-300s}

registry=localhost
namespace=disagg-system
# The targets of deploy/Dockerfile that run without a GPU; image names are disagg-TARGET.
targets=(operator router worker)

fail() {
  echo "kind.sh: $*" >&2
  exit 1
}

need() {
  local tool lacking=()
  for tool in "$@"; do
    command -v "$tool" >/dev/null || lacking+=("$tool")
  done
  ((${#lacking[@]} == 0)) || fail "not on the PATH: ${lacking[*]}"
}

# Of the cluster, whatever the current context of the kubeconfig is.
kube() {
  kubectl --context "kind-$cluster" "$@"
}

cluster_exists() {
  kind get clusters 2>/dev/null | grep --quiet --line-regexp --fixed-strings "$cluster"
}

build_images() {
  local target
  for target in "${targets[@]}"; do
    docker build --file deploy/Dockerfile --target "$target" --tag "$registry/disagg-$target:$tag" .
  done
}

load_images() {
  local target images=()
  if [[ -n $archives ]]; then
    for target in "${targets[@]}"; do
      [[ -f $archives/disagg-$target.tar ]] || fail "$archives/disagg-$target.tar is not there"
    done
    for target in "${targets[@]}"; do
      kind load image-archive "$archives/disagg-$target.tar" --name "$cluster"
    done
    return
  fi
  build_images
  for target in "${targets[@]}"; do
    images+=("$registry/disagg-$target:$tag")
  done
  # Through an archive and not by name: `kind load docker-image` fails with Docker's containerd image store.
  folder=$(mktemp --directory)
  trap 'rm -rf "$folder"' EXIT
  docker save --output "$folder/images.tar" "${images[@]}"
  kind load image-archive "$folder/images.tar" --name "$cluster"
}

up() {
  need kind kubectl helm
  [[ -n $archives ]] || need docker
  [[ -f $sample ]] || fail "$sample is not there"
  cluster_exists || kind create cluster --name "$cluster" --config deploy/kind/cluster.yaml --wait "$timeout"
  load_images
  helm upgrade --install disagg charts/disagg --kube-context "kind-$cluster" --namespace "$namespace" --create-namespace \
    --set "images.registry=$registry" --set-string "images.tag=$tag" --set images.pullPolicy=Never --wait --timeout "$timeout"
  kube apply --filename "$sample"
  kube wait --for=condition=Ready --timeout "$timeout" --filename "$sample"
  cat <<TEXT

The demo is ready. Reach it from here with

  kubectl --context kind-$cluster port-forward service/demo-router 8181

and in another terminal

  curl -si http://127.0.0.1:8181/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "demo", "messages": [{"role": "user", "content": "What is disagg?"}]}'
TEXT
}

load() {
  need kind
  [[ -n $archives ]] || need docker
  cluster_exists || fail "there is no kind cluster \"$cluster\"; deploy/kind.sh up makes it"
  load_images
}

down() {
  need kind
  kind delete cluster --name "$cluster"
}

usage="usage: deploy/kind.sh up|load|down"
(($# == 1)) || fail "$usage"
case $1 in
  up | load | down) "$1" ;;
  *) fail "$usage" ;;
esac
