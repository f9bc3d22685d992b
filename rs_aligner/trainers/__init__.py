"""The loops, and what they are made of.

A step of rejection sampling, the loop in `rs`:

    pool.draw         prompts -> rollouts -> scores     `pool`: which rollouts a step chooses from;
                                                        `collect`: samples until they suffice, in rounds
                                                        `round`: samples, and asks the judges
    chain.select      groups -> who is kept             `selection`; every rank alike: `agreement`
    learner.learn     kept -> rows -> optimizer steps   `learner`
    held_out.measure  held-out prompts, the best step   `held_out`
    run.record        figures, ledger, checkpoint       `measure`: the figures; `record`: the folder

`sft` and `preference` pass over rows, in the loop of `epochs`. All of them know the policy and the judge by
`protocols`, so that tests can hand them plain fakes; `pace` says where a loop stands, and `failures` when a
judge has failed too much.
"""
