#!/usr/bin/env bash
# `make test-image`: an engine and a base image, then the tests that build and run a real image.
#
#     bash tests/release/image/run.sh .venv/bin
#
# Everything is kept in a folder of its own, which goes afterwards; the machine's images and
# settings are left alone. With IMAGE_TEST_FOLDER that folder is named, and stays.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bin=$1
base=docker.io/library/python:3.11-slim

not_tested() {
    echo "NOT TESTED: no image was built or run: $1."
    exit 0
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

install_packages() {
    can_install || return 1
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! { command -v podman && command -v buildah; } >/dev/null; then
    install_packages podman buildah runc || true
fi
if command -v podman >/dev/null; then
    runner=podman
elif docker info >/dev/null 2>&1; then
    runner=docker
else
    not_tested "there is no podman and no docker daemon, and no package of them could be installed"
fi

folder=${IMAGE_TEST_FOLDER:-$(mktemp -d /tmp/whetstone-image-test.XXXXXX)}
mkdir -p "$folder"
clean_up() {
    if [ "$runner" = docker ]; then
        docker images --quiet localhost/whetstone | xargs --no-run-if-empty docker rmi --force >/dev/null
    fi
    [ -z "${IMAGE_TEST_FOLDER:-}" ] || return 0
    if [ "$(id -u)" = 0 ]; then
        # The storage stays mounted after the last container.
        umount --recursive "$folder/images/overlay" 2>/dev/null || true
    elif [ -d "$folder/images" ]; then
        # Files of other users, which only podman may remove.
        podman unshare rm -rf "$folder/images"
    fi
    rm -rf "$folder"
}
trap clean_up EXIT

if [ "$runner" = podman ]; then
    storage() {
        printf '[storage]\ndriver = "%s"\ngraphroot = "%s/images"\nrunroot = "%s/run"\n' \
            "$1" "$folder" "$folder" >"$folder/storage.conf"
    }
    # A machine without systemd and with a lower limit on open files than podman asks for.
    cat >"$folder/containers.conf" <<SETTINGS
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
SETTINGS
    export CONTAINERS_CONF=$folder/containers.conf CONTAINERS_STORAGE_CONF=$folder/storage.conf
    command -v runc >/dev/null || unset CONTAINERS_CONF
    storage overlay
    podman info >/dev/null 2>&1 || storage vfs
    podman info >/dev/null 2>&1 || {
        not_tested "podman cannot work here"
    }
fi

if ! "$runner" image inspect "$base" >/dev/null 2>&1 &&
    ! timeout 120 "$runner" pull --quiet "$base" >/dev/null 2>&1; then
    # A stand-in is for podman's storage in this folder: docker's is the machine's own.
    [ "$runner" = podman ] || not_tested "there is no $base, and no registry answers"
    echo "no registry answers: Debian's own Python stands in for $base"
    command -v mmdebstrap >/dev/null || install_packages mmdebstrap ||
        not_tested "there is no $base, and no mmdebstrap to make a stand-in"
    # The host's certificates, which pip needs where a proxy has one of its own.
    mmdebstrap --quiet --variant=minbase \
        --include=ca-certificates,netbase,python3,python3-venv,tzdata \
        --customize-hook='copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs' \
        bookworm "$folder/base.tar"
    certificates=/etc/ssl/certs/ca-certificates.crt
    "$runner" import --change "ENV SSL_CERT_FILE=$certificates" --change "ENV PIP_CERT=$certificates" \
        "$folder/base.tar" "$base" >/dev/null
    rm "$folder/base.tar"
fi

# A registry to push to: Debian's, as a program only. Its package would start a server.
registry=$(command -v docker-registry || true)
if [ -z "$registry" ] && command -v apt-get dpkg-deb >/dev/null; then
    (
        mkdir -p "$folder/registry" && cd "$folder/registry"
        apt-get download -qq docker-registry || { apt-get update -qq && apt-get download -qq docker-registry; }
        dpkg-deb --extract docker-registry_*.deb .
    ) >/dev/null 2>&1 && registry=$folder/registry/usr/bin/docker-registry
fi
[ -z "$registry" ] || export IMAGE_TEST_REGISTRY=$registry

IMAGE_TEST_RUNNER=$runner "$bin/pytest" -q -m image tests/release/image/test_image.py
