"""What an inspection costs on this machine: counts, times, memory, energy, operating points."""
