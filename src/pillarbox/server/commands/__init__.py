"""One file a verb: `check` refuses without asking anybody, `proceed` does what the verb says."""
