"""Which structures go into which mini-batch, and which of them to which rank (Sec. 3.4).

==========  ====================================================================================
`cost`      what a structure costs in a training step, in integer units
`uses`      what an epoch uses: the training structures and the streams that they are drawn from
`order`     stable sorting of many integers
`assign`    the structures of a mini-batch to ranks of even load
`windows`   any window of an epoch without the others, in several processes
`planners`  the baselines and the paper's three steps
`balanced`  ours: mini-batches that agree in composition and in total cost
`plan`      the plan of an epoch, from any of these
`metrics`   how good a plan is
==========  ====================================================================================

All of it works on arrays and knows nothing of structures, stores or models.
"""
