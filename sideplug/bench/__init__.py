"""`sideplug bench`: ways to split and personalise a language model, compared in one run under one network.

The comparison: main (plans a run), systems (who is compared), devices/ (what runs on the device of each system),
tasks (real text), run (what is measured, cell by cell), report/ (tables, pictures, a page). Parts (parts/) answer one
question each and run alone: `sideplug bench --part NAME`. rivals/ has the code of the rivals' servers and training,
once. The room uses sideplug as anybody could, by its commands and its public modules; only the command imports it.
Test: pytest tests/bench; pytest -m slow tests/slow/test_bench.py
"""
