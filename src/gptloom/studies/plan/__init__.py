"""What a training will cost, told before there is one."""
