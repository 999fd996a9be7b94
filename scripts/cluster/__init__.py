"""Many processes and machines, tried on this one."""
