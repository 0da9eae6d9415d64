"""A queue, pools and their manager on a virtual clock: what would happen, in seconds.

What decides is not here: it is `manager.policy`, `manager.money` and the rules of failed launches,
as they are. Here is the world that they look at.
"""
