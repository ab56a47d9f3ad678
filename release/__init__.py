"""A package → bento → image → overlay → rollout; if a step fails, everything is as it was before.

    whetstone release runs/tickets/package --overlay k8s/overlays/production \\
        --champion current --data test.csv --apply

    release, rollback   the two commands
    plan, history       what a release would do, and what the releases did
    preparation         steps 1 to 5: from a package to an image that works
    transaction         the other steps: recorded, taken, and undone if one fails
    recovery            what a killed release left behind
    context, options    what every step works with
    records             what is remembered
    image/, cluster/    bento and image, and everything that talks to Kubernetes
"""
