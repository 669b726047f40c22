"""The paper's tables and figures again, at the scale of the machine, beside the paper's numbers.

`experiments` names them, `settings` reads the configuration of one, `runs` trains what it needs and
keeps what is finished, `outcome` writes results, tables and figures; the rest is a file each.
"""
