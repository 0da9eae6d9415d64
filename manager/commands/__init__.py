"""The commands of `worker-manager`, a module each: options, and what is printed."""
