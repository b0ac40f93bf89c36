#!/bin/bash
# Build the image where there is no container engine, and run the digits job in it as its user:
#   docker/build-without-engine.sh FOLDER [ARGUMENTS of python -m slimsweep.run]
# On Debian as root, with debootstrap, which makes the base, and buildah, which builds in a chroot. The image is left in
# FOLDER/store; during the build FOLDER needs about three times its size.
set -euo pipefail
folder=$(realpath -m "${1:?a folder for the base and the store}")
shift
repository=$(cd "$(dirname "$0")/.." && pwd)
image="slimsweep:$("${repository}/docker/tag.sh")"
store() { buildah --storage-driver vfs --root "${folder}/store" --runroot "${folder}/run" "$@"; }

mkdir -p "${folder}/base"
if [ ! -e "${folder}/base/rootfs.tar" ]; then
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "${folder}/rootfs"
  tar -C "${folder}/rootfs" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists -cf "${folder}/base/rootfs.tar" .
  rm -rf "${folder}/rootfs"
fi
printf 'FROM scratch\nADD rootfs.tar /\n' >"${folder}/base/Dockerfile"
store bud --isolation chroot --tag slimsweep-base "${folder}/base"

# The settings with which this machine reaches its package registry are not kept in the image.
mounts=(-v /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro)
[ ! -e /etc/pip.conf ] || mounts+=(-v /etc/pip.conf:/etc/pip.conf:ro)
store bud --format docker --isolation chroot "${mounts[@]}" --build-arg BASE=localhost/slimsweep-base \
  --ignorefile "${repository}/.dockerignore" --file "${repository}/docker/Dockerfile" --tag "${image}" "${repository}"
store images

container=$(store from "localhost/${image}")
trap 'store rm "${container}" >/dev/null' EXIT
store run --isolation chroot "${container}" -- python -m slimsweep.run --output /tmp/runs "$@"
