"""What tests of strategies need, shipped because strategies may live in other packages."""
