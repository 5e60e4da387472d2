"""The frozen model: what runs it on a CPU (ort) or with torch, behind one seam (base)."""
