"""What LaMM's parts cost, each measured beside its peers in one process."""
