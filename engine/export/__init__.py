"""From trained weights to a folder that deploy/ serves."""
