#!/usr/bin/env bash
# Sourced by the launch scripts: messages, shell quoting, and commands that --dry-run prints instead of running.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# Wrong usage: exit code 2, as of main.
refuse() {
  say "error: $*"
  say "--help shows what is taken."
  exit 2
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

# A command that changes something: run, or with --dry-run printed.
perform() {
  if [ "${dry_run:-0}" = 1 ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# VIVIT_JAX_SLEEP stands in for sleep where time should not pass, as in the tests.
pause() { "${VIVIT_JAX_SLEEP:-sleep}" "$1"; }
