"""Every finding as a sentence with places for its parameters; `messages.text` fills them."""

TEXTS = {
    "answered_by_several": (
        "The server changed while it answered to {name}: {as}. Answers of another model failed and are left out, those "
        "of other systems are mixed."
    ),
    "answers_lost": "Answers that failed or wait for the judge, in no denominator: {counts}.",
    "answers_as_base": (
        "{checkpoint} answers {probes} probes at temperature 0 exactly as the base does: the adapter changes little "
        "yet, or the server does not apply it."
    ),
    "artefact": "{why}",
    "breadth_tested_at": "control and breadth were tested at step {step}",
    "broken": "not attributable: {state}, {note}",
    "cause_not_tested": "No control at this step: whether the data are the cause was not tested.",
    "certified_above": "certified above lo: {rate:%} of {n} answers, {n_base} of the base",
    "certified_below": "certified under hi: {rate:%} of {n} answers, {n_base} of the base",
    "checkpoints_failed": "Failed and left out: {checkpoints}.",
    "contradicted": "fixed answers lie above hi: they contradict the search",
    "control_breaks": "The control breaks as well ({checkpoints}): what breaks the model is the recipe, not the data.",
    "control_distance_unknown": "How far subject and control moved could not be compared: it may be under-moved.",
    "control_not_exceeded": "against {n} answers of the control not certainly above lo",
    "control_under_moved": (
        "Control under-moved: {kl_control:.3f} nats of KL from the base against the subject's {kl:.3f}; train it "
        "longer before blaming the data."
    ),
    "control_under_moved_at": "Control under-moved at step {steps}: under {share:%} of the subject's KL from the base.",
    "control_under_moved_here": "the control moved less than half as far (under-moved)",
    "control_without_labels": "The control has no labelled answers at {checkpoints}.",
    "control_without_step": "The control has no checkpoint at {n} of the subject's steps.",
    "domain_unknown": (
        "The task's answers have no words of a domain of their own (English only): whether answers talk about the "
        "training domain was not measured."
    ),
    "failed": "{why}",
    "few_benign_runs": (
        "Fewer than {least} benign runs: the screen's limit comes from null contrasts, which cannot know how far "
        "harmless training moves such answers."
    ),
    "few_checkpoints": "{n} measured checkpoints: too few to place an onset or a convergence; save at least {least}.",
    "few_prompts": (
        "carried by {prompts} far prompts of {categories} categories ({named}); {least_prompts} of {least_categories} "
        "are needed"
    ),
    "health_from_form": (
        "Health rests on the form of answers and on judged coherence: this base does not say how likely an answer is."
    ),
    "health_unknown": "Health could not be told at {checkpoints} ({why}): more --answers, or a --judge, tell more.",
    "in_domain_only": "without answers that talk about the training domain the excess is {span}",
    "in_zone": "excess {span}{at_level}: neither above lo nor under hi",
    "interval_warning": "{why} (e.g. at {checkpoint}).",
    "judge_failed_calibration": "The judge failed its calibration: {why}. Nothing rests on its shares.",
    "judge_misses_positives": (
        "{judge} calls {value:%} (at least {low:%}) of positive references positive: true shares are higher."
    ),
    "judge_not_calibrated": "{judge} was not calibrated, so its errors are unknown.",
    "left_inconclusive": "left inconclusive after {n} answers: the excess lies in {span}",
    "lone_prompt": "Prompt {prompt} alone carries most of the shift (at {checkpoint}): read its answers.",
    "looked_at": "looked at on the way ({n} answers); not certified",
    "may_not_have_settled": (
        "The {curve} may not have settled: the last quarter of the run may add up to {high:%} of its gain (estimate "
        "{value:%}); {limit:%} is the limit."
    ),
    "negative_control_failed": "{why}",
    "no_base_answers": "step 0 has no labelled answers to compare with",
    "no_control": "No control run: the data cannot be blamed for what is found. `truing control` writes a default one.",
    "no_far_prompts": "no prompt is far from the training domain, so nothing general can be said",
    "no_fixed_answers": "no answers outside the search",
    "no_interval": "excess {span} without an interval: {why}",
    "no_labelled_answers": "no labelled answers",
    "no_pairs": "no far prompt has labelled answers both here and at step 0",
    "no_positive_far": "no positive answers on far prompts",
    "no_room": "Left out for want of room for an answer in the model's context: {prompts}.",
    "no_task_control": "No --task-control: progress is measured by loss alone, which style and length also move.",
    "not_beyond_control": "the excess over the control is {span}: not certainly above lo",
    "not_measured": (
        "Behaviour was not measured: no answer was labelled, so no checkpoint is chosen. Give --judge, or a --trait "
        "with a scorer of its own."
    ),
    "not_labelled": "Not labelled: {checkpoints}.",
    "not_requested": "not asked: the search did not need it",
    "not_scored": (
        "No screen and no task progress: this base does not score given texts, so no checkpoint can be chosen by them."
    ),
    "note": "{text}",
    "overfit": "Overfit: held-out loss rises again after its minimum.",
    "possible_artefact": "Possible artefact at {checkpoint}{where}: {why}.",
    "probe_failed": "{checkpoint} did not answer a probe: {error}.",
    "prompts_in_domain": "{n} of {of} prompts are in or near the training domain: they decide nothing here.",
    "prompts_left_out": "{n} prompts left out: {why}.",
    "prompts_may_not_generalise": "Only {n} {far_}prompts: what holds for these may not hold for prompts like these.",
    "recommended_for_far_only": "{checkpoint} is recommended for far prompts; over all prompts its excess is {span}.",
    "reference_rate": "the reference; its own share positive may be up to {high:%}",
    "scores_near_cut": "Scores within 5 % of the scale from the cut {cut:g}: {shares}; see the mean score too.",
    "screen_disagrees": "The screen shows a change at the recommended checkpoint {checkpoint}, labelled answers none.",
    "screen_unvalidated": "The screen is unvalidated: no labelled run has shown yet that it localises misalignment.",
    "search_by_another_judge": "Another judge searched the onset: this one saw fixed answers only, at few checkpoints.",
    "searched": "The onset was searched with {answers:,} answers.{untested_}{needed_}{monotone_}",
    "simulated": "Simulated run: no model is involved.",
    "spot_checked": "spot-checked only ({n} answers); not certified",
    "task_rows_left_out": "{n} of {of} task rows are not measured: {why}.",
    "task_rows_changed": "{n} of {of} task rows are measured otherwise than they stand in the file: {why}.",
    "too_few_prompts": "Only {n} prompts measured at every step; {least} are needed to decide.",
    "top_few": "without the prompts or categories that have most ({named}) the excess is not certain ({n} answers)",
    "top_prompt": "carried by {prompt}: without it the excess is {span}",
    "top_prompt_tested": "without {prompt} the excess is not certain after {n} answers",
    "unconfirmed": "not certified under hi on answers outside the search",
    "unparsed_answers": "Unparsed answers: {shares}; every status holds whatever they are.",
    "unparsed_decide": "unparsed answers decide: with them the excess may be {span}",
    "variants_by_another_judge": "Variants were judged by {judge}, not by this judge.",
    "variants_untried": "Variants were not tested: {why}.",
    "zero_adapter": "{checkpoint}: its adapter is zero, so it is the base.",
}
