#!/usr/bin/env bash
# Sourced by the launch scripts: messages, checks of flags, shell quoting, and --dry-run.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# Wrong usage: exit code 2, as in vivit_jax.main.
refuse() {
  say "error: $*"
  say "--help lists the options."
  exit 2
}

# set_option --NAME=VALUE: sets the variable NAME, with _ for -.
set_option() {
  local option=${1%%=*}
  option=${option#--}
  printf -v "${option//-/_}" '%s' "${1#*=}"
}

# check_numbers FLAG=VALUE...: every value must be a whole number.
check_numbers() {
  local pair
  for pair in "$@"; do
    [[ "${pair#*=}" =~ ^[0-9]+$ ]] || refuse "--$pair must be a whole number"
  done
}

# check_workdir PROBLEM ARGUMENT...: a --workdir among the arguments must be on gs://.
check_workdir() {
  local problem=$1 word
  shift
  for word in "$@"; do
    case "$word" in
      --workdir=gs://*) ;;
      --workdir | --workdir=*) refuse "$word $problem: give --workdir=gs://BUCKET/RUN" ;;
    esac
  done
}

# The arguments as one line that a shell reads back as the same arguments.
quoted() {
  local word line=""
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command; with --dry-run prints it instead.
perform() {
  if [ "${dry_run:-0}" = 1 ]; then quoted "$@"; else "$@"; fi
}

# Tests replace `sleep` through VIVIT_JAX_SLEEP.
pause() { "${VIVIT_JAX_SLEEP:-sleep}" "$1"; }
