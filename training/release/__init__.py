"""A package → bento → image → overlay → rollout, or everything as it was before.

    whetstone release runs/tickets/package --overlay k8s/overlays/production \\
        --champion current --data test.csv --apply

`release` has the steps, `rollout` what happens in the cluster, `records` what is remembered.
"""
