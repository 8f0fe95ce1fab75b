"""How the paper is cited, by model cards and by the trainer's own."""

TITLE = "Not All Rollouts are Useful: Down-Sampling Rollouts in LLM Reinforcement Learning"
CITATION = f"""@article{{xu2025pods,
    title   = {{{TITLE}}},
    author  = {{Yixuan Even Xu and Yash Savani and Fei Fang and J. Zico Kolter}},
    year    = 2025,
    eprint  = {{arXiv:2504.13818}},
}}"""
