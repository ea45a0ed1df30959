#!/usr/bin/env bash
# Build a container image of the server with docker, podman or buildah.
# `scripts/build_image.sh --help` tells the options; the Dockerfile itself tells how to run it.
set -euo pipefail

usage() {
  cat <<'END'
Usage: scripts/build_image.sh [OPTION]...

Builds Dockerfile.cpu from this checkout; prints the image's name, its size and the build time.

  --file FILE        Dockerfile to build (default: Dockerfile.cpu)
  --tag NAME         name of the image (default: localhost/embedding-server:VERSION-cpu, or -gpu)
  --base IMAGE       image to start from (default: the Dockerfile's)
  --engine NAME      docker, podman or buildah (default: the first of them that works)
  --no-cache         build every layer anew

Where packages come from:
  --pip-conf FILE    pip's configuration while building (an index of one's own, for example)
  --ca-bundle FILE   certificates that pip and the Hugging Face client trust while building
  --volume SRC:DST   folder to show, read-only, to the build's commands (repeatable; podman and
                     buildah): wheels, for example, that the pip configuration names

Without a registry:
  --bootstrap        make the base image with debootstrap and build on it with buildah; needs root
                     and a Debian mirror
  --suite NAME       Debian suite to bootstrap (default: bookworm); security updates are not in it
  --mirror URL       Debian mirror to bootstrap from (default: debootstrap's)

Inside a container or sandbox set BUILDAH_ISOLATION=chroot (--bootstrap does so by itself).
END
}

fail() {
  echo "build_image.sh: $1" >&2
  exit 2
}

file=Dockerfile.cpu tag='' base='' engine='' bootstrap='' suite=bookworm mirror=''
pip_conf='' ca_bundle='' volumes=() options=()

while (($#)); do
  case $1 in
    --help | -h) usage && exit ;;
    --no-cache) options+=(--no-cache) ;;
    --bootstrap) bootstrap=yes ;;
    --file | --tag | --base | --engine | --pip-conf | --ca-bundle | --volume | --suite | --mirror)
      [[ -n ${2:-} ]] || fail "$1 needs a value"
      case $1 in
        --file) file=$2 ;;
        --tag) tag=$2 ;;
        --base) base=$2 ;;
        --engine) engine=$2 ;;
        --pip-conf) pip_conf=$(realpath -m -- "$2") ;;
        --ca-bundle) ca_bundle=$(realpath -m -- "$2") ;;
        --volume) volumes+=("$2") ;;
        --suite) suite=$2 ;;
        --mirror) mirror=$2 ;;
      esac
      shift
      ;;
    *) fail "unknown option $1; see --help" ;;
  esac
  shift
done

[[ $engine =~ ^(|docker|podman|buildah)$ ]] ||
  fail "--engine is docker, podman or buildah, not $engine"
cd "$(dirname "$0")/.."
[[ -f $file ]] || fail "no such Dockerfile: $file"
for given in "$pip_conf" "$ca_bundle"; do
  [[ -z $given || -r $given ]] || fail "cannot read $given"
done

# --- Engine ---------------------------------------------------------------------------------------

works() {
  case $1 in
    docker) docker info --format '{{.ServerVersion}}' ;; # the command alone is not enough
    *) "$1" info ;;
  esac >/dev/null 2>&1
}

if [[ $bootstrap ]]; then
  [[ -z $base ]] || fail "--bootstrap makes the base itself; leave out --base"
  [[ ${engine:-buildah} == buildah ]] || fail "--bootstrap builds with buildah, not $engine"
  ((EUID == 0)) || fail "--bootstrap needs root"
  command -v debootstrap >/dev/null || fail "--bootstrap needs debootstrap"
  engine=buildah
  export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
fi
if [[ -z $engine ]]; then
  for engine in docker podman buildah none; do
    if [[ $engine != none ]] && works "$engine"; then break; fi
  done
  [[ $engine != none ]] || fail "found no working docker, podman or buildah"
fi
works "$engine" || fail "$engine does not work here; see: $engine info"

# --- Base image -----------------------------------------------------------------------------------

started_s=$SECONDS
scratch=$(mktemp -d)
trap 'rm -rf --one-file-system "$scratch"' EXIT

make_base() { # a Debian with Python and nothing that a running server could miss
  local root=$scratch/root container
  echo "Making $base with debootstrap ..."
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    "$suite" "$root" ${mirror:+"$mirror"} >"$scratch/debootstrap.log" 2>&1 ||
    fail "debootstrap: $(tail -n 1 "$scratch/debootstrap.log")"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/{doc,info,locale,man}/*
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$root" / >/dev/null
  buildah config --cmd /bin/bash \
    --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit --quiet --format docker --rm "$container" "$base" >/dev/null
  rm -rf --one-file-system "$root"
}

if [[ $bootstrap ]]; then
  base=localhost/python-base:$suite
  if buildah inspect --type image "$base" >/dev/null 2>&1; then
    echo "Using $base from an earlier run; to make it anew: buildah rmi $base"
  else
    make_base
  fi
fi

# --- Build ----------------------------------------------------------------------------------------

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' server/__init__.py)
[[ $version ]] || fail "server/__init__.py holds no __version__"
tag=${tag:-localhost/embedding-server:$version-${file##*.}}

options+=(--file "$file" --tag "$tag" --build-arg "VERSION=$version")
if [[ $base ]]; then options+=(--build-arg "BASE=$base"); fi
if [[ $pip_conf ]]; then options+=(--secret "id=pip.conf,src=$pip_conf"); fi
if [[ $ca_bundle ]]; then
  options+=(--secret "id=ca.crt,src=$ca_bundle")
  options+=(--build-arg PIP_CERT=/run/secrets/ca.crt --build-arg SSL_CERT_FILE=/run/secrets/ca.crt)
fi
for volume in "${volumes[@]}"; do
  [[ $engine != docker ]] || fail "docker cannot build with --volume; use podman or buildah"
  [[ $volume == /*:/* && -e ${volume%%:*} ]] || fail "--volume $volume: want /existing/path:/path"
  options+=(--volume "$volume:ro")
done

echo "Building $tag from $file with $engine ..."
base_s=$((SECONDS - started_s))
case $engine in
  docker) DOCKER_BUILDKIT=1 docker build "${options[@]}" . ;;
  # The OCI format has no health check.
  podman) podman build --format docker --layers "${options[@]}" . ;;
  buildah) buildah build --format docker --layers "${options[@]}" . ;;
esac || fail "the build failed; the reason stands above"

case $engine in
  docker | podman) bytes=$("$engine" image inspect --format '{{.Size}}' "$tag") ;;
  buildah)
    container=$(buildah from --pull-never "$tag")
    bytes=$(du --summarize --apparent-size --block-size=1 "$(buildah mount "$container")" | cut -f 1)
    buildah rm "$container" >/dev/null
    ;;
esac
echo "Built $tag: $((bytes / 1000000)) MB uncompressed, in $((SECONDS - started_s)) s" \
  "($base_s s of it for the base image)"
