"""`sideplug bench`: ways to split and personalise a model, behind one signature, in one run, under one network.

systems (who is compared) and devices/ (what runs on the device of each), tasks (real text), run (what is measured, cell
by cell), report (tables, pictures, a page). It uses sideplug as anybody could: its commands and its public modules.
"""
