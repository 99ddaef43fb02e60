"""The user's side: profiles and login, the way to the proxy, local proxies, and the files written for other programs.

Belongs here: everything `tsh` does. Does not belong here: parsing its command line and printing (cli/tsh.py).
"""
