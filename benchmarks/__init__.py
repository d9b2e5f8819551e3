"""The figures of README.md, docs/results.md and docs/performance.md: python3 -m benchmarks"""
