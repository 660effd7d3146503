"""The command `sd-edge`: options, help, exit codes."""
