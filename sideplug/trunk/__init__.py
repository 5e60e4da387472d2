"""Trunks: what is learnt once, from many people's public text, for all whose manner begins on the same base."""
