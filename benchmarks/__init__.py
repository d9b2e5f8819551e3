"""Every figure of the README comes from here: python3 -m benchmarks"""
