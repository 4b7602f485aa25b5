"""Faults on purpose: damaged files, kills, full disks, two writers, nonsense flags and files. Only for tests."""
