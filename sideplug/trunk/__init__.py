"""Trunks: what is learnt once, from many people's public text, for everybody who begins a part of manner on one base."""
