"""Training: the steps of an epoch, optimizer, learning rate, precision, memory."""
