// Draws the running job: progress, numbers, curve, previews. Starts nothing; buttons are gradio's.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    const el = (...given) => ti.el(...given);
    const view = { kind: "loss", preview: null, row: 0, against: null, job: null, panel: null, parts: null, pointed: false, width: 0 };

    const PHASES = { starting: "Getting ready", interrupted: "Stopped early", failed: "Stopped", idle: "" };
    // Kind of job -> its own words for the other phases, and whether its end is good news; the kinds are those of JobKind in app/job.py.
    const KINDS = {
        train: { working: "Learning", stopping: "Stopping after this step", finished: "Training is over", good: true },
        preprocess: { working: "Preprocessing", stopping: "Stopping after this picture", finished: "Preprocessed", good: true },
        look: { working: "Looking", stopping: "Stopping after this picture", finished: "Looked at", good: false },
        check: { working: "Checking", stopping: "Stopping after this file", finished: "Checked", good: false },
        install: { working: "Fetching", stopping: "Stopping", finished: "Installed", good: true },
    };

    function duration(seconds) {
        if (seconds === null || seconds === undefined) return "–";
        const whole = Math.round(seconds);
        if (seconds < 1) return "under 1 s";
        if (whole < 60) return whole + " s";
        if (whole < 3600) return Math.floor(whole / 60) + " min " + String(whole % 60).padStart(2, "0") + " s";
        return Math.floor(whole / 3600) + " h " + String(Math.floor((whole % 3600) / 60)).padStart(2, "0") + " min";
    }

    function share(state) {
        const all = state.last_step - state.first_step;
        return all > 0 ? Math.min(1, Math.max(0, (state.step - state.first_step) / all)) : 0;
    }

    function phase(state) {
        const words = Object.assign({}, PHASES, KINDS[state.kind]);
        if (state.kind === "train" && state.phase === "finished" && state.verdict && state.verdict.level === "good") return "Learned";
        return words[state.phase] || state.phase;
    }

    function mark() {
        return el("svg", { class: "ti-mark", viewBox: "0 0 36 24", "aria-hidden": "true" },
            el("path", { d: "M9 3 2 12l7 9M27 3l7 9-7 9", fill: "none", stroke: "currentColor", "stroke-width": "2.6", "stroke-linecap": "round", "stroke-linejoin": "round" }),
            el("circle", { cx: 18, cy: 12, r: 5, fill: "var(--ti-accent)" }));
    }

    function empty() {
        const steps = [
            ["A word", "Pick a name that means nothing yet."],
            ["Some pictures", "Five to twenty of one subject."],
            ["Train", "Progress, the loss curve and previews appear here."],
        ];
        return el("div", { class: "ti-empty" }, mark(), el("p", {}, el("strong", {}, "Nothing is being trained.")),
            el("ol", { class: "ti-how" }, steps.map(([title, text]) => el("li", {}, el("strong", {}, title), el("span", {}, text)))));
    }

    function skeleton() {
        const parts = {
            phase: el("span", { class: "ti-phase" }), name: el("code", { class: "ti-word" }),
            count: el("span", { class: "ti-count" }), fill: el("span", { class: "ti-fill" }),
            stats: el("dl", { class: "ti-stats" }), verdict: el("div", { class: "ti-judged", role: "status", "aria-live": "polite" }), notice: el("div", { class: "ti-notice", role: "status", "aria-live": "polite" }),
            tabs: el("div", { class: "ti-switch", role: "group", "aria-label": "Curve" }), readout: el("span", { class: "ti-readout" }), chart: el("div", { class: "ti-curve" }),
            image: el("img", { class: "ti-preview", alt: "" }), caption: el("div", { class: "ti-caption" }),
            range: el("input", { type: "range", min: 0, max: 0, step: 1, class: "ti-range", "aria-label": "Previews by step", oninput: picked }),
            remarks: el("div", { class: "ti-remarks", role: "status", "aria-live": "polite" }, el("ul", {})),
            other: el("img", { class: "ti-preview ti-other", alt: "", hidden: true }),
            against: el("select", { class: "ti-against", "aria-label": "Compare with another step", onchange: compared }),
            split: el("input", { type: "range", min: 0, max: 100, value: 50, class: "ti-split", "aria-label": "Where the two pictures meet", oninput: splitted }),
            messages: el("details", { class: "ti-messages" }, el("summary", {}), el("ul", {})),
        };
        parts.bar = el("div", { class: "ti-bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, parts.fill);
        parts.use = el("div", { class: "ti-used" });
        parts.film = el("div", { class: "ti-film", role: "group", "aria-label": "Previews" });
        parts.pair = el("div", { class: "ti-pair" }, parts.image, parts.other);
        parts.previews = el("figure", { class: "ti-previews" }, parts.pair, parts.split, parts.caption, parts.range, parts.against, parts.use);
        parts.waiting = el("div", { class: "ti-waiting" });
        for (const [key, kind] of Object.entries(ti.chartKinds)) {
            parts.tabs.append(el("button", { type: "button", "data-kind": key, onclick: () => { view.kind = key; view.pointed = false; draw(ti.state(), true); } }, kind.label));
        }
        const curve = el("div", { class: "ti-plot" }, el("div", { class: "ti-plothead" }, parts.tabs, parts.readout), parts.chart);
        const panel = el("div", { class: "ti-job" },
            el("header", {}, el("div", { class: "ti-title-row" }, parts.phase, parts.name), parts.count),
            parts.bar, parts.notice, parts.remarks, parts.verdict, parts.stats,
            parts.visuals = el("div", { class: "ti-visuals" }, curve, el("div", { class: "ti-side" }, parts.previews, parts.waiting), parts.film),
            parts.messages);
        return { panel, parts };
    }

    function picked() {
        const state = ti.state(), index = Number(view.parts.range.value);
        view.preview = index === columns(state).length - 1 ? null : index; // the newest one keeps following
        previews(state);
        view.pointed = false;
        curve(state); // its mark goes to that step
    }

    // Each step has a preview for every prompt; the first prompt's stand for the steps.
    const columns = (state) => (state.previews || []).filter((preview) => !preview.row);
    const inRow = (state, step) => { const all = (state.previews || []).filter((preview) => preview.step === step); return all.find((preview) => preview.row === view.row) || all[0]; };
    const pictureOf = (state, preview) => ti.address("picture?job=" + encodeURIComponent(state.job) + "&file=" + encodeURIComponent(preview.file));
    const shownIndex = (all) => (view.preview === null ? all.length - 1 : Math.min(view.preview, all.length - 1));

    // A click on the curve shows the preview of the nearest step.
    function pickNear(step) {
        const all = columns(ti.state() || {});
        if (!all.length) return;
        const near = all.reduce((best, preview, at) => (Math.abs(preview.step - step) < Math.abs(all[best].step - step) ? at : best), 0);
        view.parts.range.value = near;
        picked();
    }

    function compared() {
        const chosen = view.parts.against.value;
        view.against = chosen === "" ? null : Number(chosen);
        compare(ti.state());
    }

    function splitted() {
        view.parts.pair.style.setProperty("--split", view.parts.split.value + "%");
        view.parts.split.style.setProperty("--ti-at", view.parts.split.value + "%");
    }

    // Lays the preview of another step over the one that is shown; the slider says how far.
    function compare(state) {
        const parts = view.parts, all = columns(state);
        const steps = all.map((preview) => preview.step).join(" ");
        if (parts.against.dataset.steps !== steps) {
            parts.against.dataset.steps = steps;
            parts.against.replaceChildren(el("option", { value: "" }, "Compare with …"), ...all.map((preview) => el("option", { value: preview.step }, "Compare with step " + preview.step)));
        }
        const other = view.against === null ? undefined : inRow(state, view.against);
        parts.against.value = other ? String(other.step) : "";
        parts.against.hidden = all.length < 2;
        parts.other.hidden = parts.split.hidden = !other;
        if (!other) return;
        const source = pictureOf(state, other);
        if (parts.other.src !== source) parts.other.src = source;
        parts.other.alt = other.prompt + ", step " + other.step;
        parts.split.setAttribute("aria-valuetext", "step " + other.step + " up to " + parts.split.value + " %");
        splitted();
    }

    function previews(state) {
        const parts = view.parts, all = columns(state);
        parts.previews.hidden = !all.length;
        parts.waiting.hidden = all.length > 0;
        parts.waiting.textContent = ti.busy(state) ? "The first preview appears here." : "No previews were drawn.";
        if (!all.length) return;
        const index = shownIndex(all);
        const shown = inRow(state, all[index].step);
        const source = pictureOf(state, shown);
        if (parts.image.src !== source) parts.image.src = source;
        parts.image.alt = shown.prompt + ", step " + shown.step;
        parts.caption.replaceChildren(el("strong", {}, "Step " + shown.step + (index === all.length - 1 && all.length > 1 ? " · latest" : "")), el("span", {}, shown.prompt));
        parts.range.max = all.length - 1;
        parts.range.value = index;
        parts.range.style.setProperty("--ti-at", all.length > 1 ? (100 * index) / (all.length - 1) + "%" : "100%");
        use(state, shown.step);
        film(state, all, index);
        compare(state);
        parts.range.hidden = all.length < 2;
        parts.range.setAttribute("aria-valuetext", "step " + shown.step);
    }

    // Columns are steps, rows are prompts; a click shows a picture large.
    function film(state, all, index) {
        const box = view.parts.film, kept = state.job + "|" + (state.previews || []).length;
        if (box.dataset.kept !== kept) {
            box.dataset.kept = kept;
            const left = box.scrollLeft, focused = [...box.children].indexOf(document.activeElement);
            box.replaceChildren(...all.map((preview, at) => column(state, preview.step, at)));
            box.scrollLeft = left;
            if (focused >= 0 && box.children[focused]) box.children[focused].focus({ preventScroll: true });
        }
        [...box.children].forEach((frame, at) => {
            frame.setAttribute("aria-pressed", String(at === index));
            for (const image of frame.querySelectorAll("img")) image.classList.toggle("ti-now", at === index && Number(image.dataset.row) === shownRow(state, all[index].step));
        });
        box.hidden = all.length < 2 && (state.previews || []).length < 2;
    }
    const shownRow = (state, step) => inRow(state, step).row || 0;

    function column(state, step, at) {
        const images = state.previews.filter((preview) => preview.step === step)
            .map((preview) => el("img", { src: pictureOf(state, preview), alt: "", title: preview.prompt, loading: "lazy", "data-row": preview.row || 0 }));
        const show = (event) => {
            if (event.target.dataset.row !== undefined) view.row = Number(event.target.dataset.row);
            view.parts.range.value = at;
            picked();
        };
        return el("button", { type: "button", class: "ti-frame", onclick: show }, images, el("span", {}, "Step " + step));
    }

    // "Use this step": the copy that was kept with the preview becomes the embedding; "Take back" undoes that.
    function use(state, step) {
        const box = view.parts.use, name = state.name, last = state.step === step;
        const kept = (state.copies || []).some((copy) => copy.step === step);
        box.hidden = ti.busy(state) || !kept;
        const used = state.used_step === null || state.used_step === undefined ? state.step : state.used_step;
        const text = used === step ? "The word holds this step." : "";
        const button = used === step ? null : el("button", { type: "button", class: "ti-use", onclick: () => ti.exchange({ use: step, job: state.job }) }, last ? "Use the last step" : "Use this step");
        const back = state.used_step !== null && state.used_step !== undefined ? el("button", { type: "button", class: "ti-try ti-takeback", "data-name": name }, "Undo") : null;
        box.replaceChildren(...[text, button, back].filter(Boolean));
    }

    function stats(state) {
        const speed = state.steps_per_second;
        const rows = state.kind !== "train" ? [["Time", duration(state.seconds)]] : [
            ["Speed", speed === null ? "–" : speed >= 1 ? [speed.toFixed(1), " steps/s"] : [(1 / speed).toFixed(1), " s/step"]],
            ti.busy(state) ? ["Time left", duration(state.seconds_left)] : ["Time taken", duration(state.seconds)],
            ["Loss", ti.number(state.smooth)], ["Vector norm", ti.number(state.vector_norm)], ["Pictures", String(state.images || "–")],
        ];
        view.parts.stats.replaceChildren(...rows.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, Array.isArray(value) ? [value[0], el("small", {}, value[1])] : value))));
    }

    function curve(state) {
        const parts = view.parts, points = state.points || [];
        for (const button of parts.tabs.children) button.setAttribute("aria-pressed", String(button.dataset.kind === view.kind));
        const width = Math.max(260, Math.floor(parts.chart.clientWidth || 520));
        if (view.pointed) return; // a redraw would take the line from under the pointer
        view.width = width;
        const readout = (point) => {
            view.pointed = Boolean(point);
            const kind = ti.chartKinds[view.kind];
            parts.readout.textContent = point ? "step " + point[0] + " · " + ti.number(point[kind.faint || kind.strong]) + (kind.faint ? " (mean " + ti.number(point[kind.strong]) + ")" : "") : "";
        };
        const all = columns(state), marked = all.length > 1 ? all[shownIndex(all)].step : null;
        parts.chart.replaceChildren(ti.chart(points, state.first_step, state.last_step, view.kind, width, readout, state.evaluations || [], { marked, onclick: pickNear }));
    }

    function notice(state) {
        const parts = view.parts, busy = ti.busy(state);
        let text = "", kind = "";
        if (state.lost) [text, kind] = ["The connection is lost; trying again.", "error"];
        else if (state.failed) [text, kind] = [state.reason, "error"];
        else if (busy && state.busy_with) text = state.busy_with + " …";
        else if (state.phase === "starting") text = (state.messages || []).slice(-1)[0] || "";
        else if (!busy && state.kind === "train") {
            const level = state.verdict ? state.verdict.level : "";
            const end = level === "bad" ? "The run is over." : level === "fair" ? "The run is over; try the word before you rely on it." : "The word is ready: use it in a prompt.";
            text = state.reason || (state.phase === "interrupted" ? ((state.points || []).length ? "What was learned up to step " + state.step + " is kept." : "Stopped before the first step; nothing has changed.") : end);
            const other = state.used_step !== null && state.used_step !== undefined;
            if (other) text = "The word holds the vectors of step " + state.used_step + ".";
            kind = level === "good" && !other && state.phase === "finished" && !state.reason ? "done" : "";
        } else if (!busy) [text, kind] = [state.reason, KINDS[state.kind] && KINDS[state.kind].good ? "done" : ""];
        parts.notice.textContent = text;
        parts.notice.className = "ti-notice" + (kind ? " ti-notice-" + kind : "");
        parts.notice.hidden = !text;
        const word = !busy && !state.failed && !state.lost && state.kind === "train" && (state.points || []).length && ti.tryWord && ti.canTry();
        if (word) parts.notice.append(el("button", { type: "button", class: "ti-try", onclick: () => ti.tryWord(state) }, "Try it"));
    }

    const LEVELS = { good: "Good", fair: "Not yet good", bad: "Not good" };

    // One sentence on how well the word has been learned, the norm of its vectors among those of words, and the words nearest to them.
    function verdict(state) {
        const box = view.parts.verdict, judged = state.kind === "train" ? state.verdict : null;
        box.hidden = !judged;
        view.panel.dataset.level = judged ? judged.level : "";
        if (!judged) return;
        box.dataset.level = judged.level;
        const words = Object.values(judged.words).map((row) => row.filter(Boolean).join(", ")).filter(Boolean);
        box.replaceChildren(
            el("p", { class: "ti-verdict", "data-level": judged.level }, el("span", { class: "ti-visually-hidden" }, LEVELS[judged.level] + ": "), judged.text),
            words.length ? el("p", { class: "ti-means", title: "The word of the checkpoint that is nearest to each vector" }, ti.busy(state) ? "Now means: " : "Means: ", el("strong", {}, words.join(" | "))) : null,
            ...Object.keys(judged.norms).map((encoder) => band(judged.norms[encoder], judged.range[encoder])));
    }

    // The norms of the vectors on a scale of which green is the range of real words, amber up to 10 and red above 30 times their length.
    function band(norms, range) {
        if (!range || !norms.length) return null;
        const [low, median, high] = range, most = 100 * median;
        const at = (norm) => 100 * Math.min(1, Math.max(0, Math.log(norm / (low / 4)) / Math.log(most / (low / 4))));
        const bar = el("span", { class: "ti-band", style: `--low:${at(low)}%;--high:${at(high)}%;--long:${at(10 * median)}%;--broken:${at(30 * median)}%` });
        for (const norm of norms) bar.append(el("span", { class: "ti-dot", style: `left:${norm === null ? 100 : at(norm)}%` }));
        const shown = norms.filter((norm) => norm !== null), times = shown.length ? Math.max(...shown) / median : Infinity;
        const text = "Vector norm " + ti.number(times) + " × that of words";
        return el("div", { class: "ti-bandrow", role: "img", "aria-label": text, title: text + "; green: the range of real words" }, el("small", {}, "Vector norm"), bar, el("small", {}, ti.number(times) + " ×"));
    }

    const MOST_REMARKS = 4;

    // What should not be missed, such as pictures that were left out; all messages are in the folded list.
    function remarks(state) {
        const texts = state.remarks || [], shown = texts.slice(0, MOST_REMARKS), more = texts.length - shown.length;
        view.parts.remarks.hidden = !texts.length;
        if (more) shown.push("and " + more + " more in the messages");
        const list = view.parts.remarks.firstChild, kept = JSON.stringify(shown);
        if (list.dataset.kept === kept) return; // a screen reader says a list again whenever it is made anew
        list.dataset.kept = kept;
        list.replaceChildren(...shown.map((text) => el("li", {}, text)));
    }

    function messages(state) {
        const texts = state.messages || [], box = view.parts.messages;
        box.hidden = !texts.length;
        box.querySelector("summary").textContent = texts.length === 1 ? "1 message" : texts.length + " messages";
        box.querySelector("ul").replaceChildren(...texts.map((text) => el("li", {}, text)));
    }

    // On a narrow page the running job stands above the form; whoever pressed Train below is taken there.
    function reveal(state) {
        const begun = state.job && state.job !== view.revealed && ti.busy(state);
        if (begun && view.revealed !== undefined && view.panel && view.panel.getBoundingClientRect().top < 0) view.panel.scrollIntoView({ block: "start" });
        view.revealed = state.job;
    }

    // What a click has said about a job, such as "Stopping after this step", goes when the job is over.
    function forget(state) {
        if (view.wasBusy && !ti.busy(state)) for (const note of document.querySelectorAll("#ti_train_note .ti-note-done, #ti_preprocess_note .ti-note-done")) note.hidden = true;
        view.wasBusy = ti.busy(state);
    }

    function draw(state, changed) {
        pill(state);
        if (state) {
            forget(state);
            const drawn = Boolean(state.drawing && state.drawing.busy);
            document.body.classList.toggle("ti-busy", ti.busy(state));
            document.body.classList.toggle("ti-drawn", drawn);
            for (const id of ["ti_train_button", "ti_preprocess_button", "ti_look_button"]) document.getElementById(id)?.setAttribute("aria-disabled", String(ti.busy(state)));
            for (const [id, busy] of [["ti_train_stop", ti.busy(state)], ["ti_preprocess_stop", ti.busy(state)], ["ti_generate_stop", drawn]]) {
                const stop = document.getElementById(id);
                if (stop) stop.setAttribute("aria-disabled", String(!busy)); // it looks so, too
            }
        }
        const root = [...document.querySelectorAll(".ti-live")].find((node) => node.offsetParent !== null);
        if (!root || !state) return;
        if (!state.kind) {
            if (!root.querySelector(".ti-empty")) root.replaceChildren(empty());
            return;
        }
        if (!view.panel || !root.contains(view.panel)) {
            Object.assign(view, skeleton());
            root.replaceChildren(view.panel);
        } else if (!changed) {
            if (ti.busy(state)) stats(state);
            if (view.parts.chart.clientWidth && Math.abs(view.parts.chart.clientWidth - view.width) > 2) curve(state);
            return;
        }
        if (view.job !== state.job) Object.assign(view, { job: state.job, preview: null, row: 0, against: null, pointed: false });
        const parts = view.parts, train = state.kind === "train";
        Object.assign(view.panel.dataset, { phase: state.phase, kind: state.kind });
        parts.phase.textContent = phase(state);
        parts.name.textContent = state.name;
        parts.count.replaceChildren(el("strong", {}, String(state.step)), " / " + (state.last_step || "–") + (state.kind === "install" ? " KB" : ""));
        parts.fill.style.width = (100 * share(state)).toFixed(2) + "%";
        parts.bar.setAttribute("aria-valuenow", Math.round(100 * share(state)));
        parts.visuals.hidden = !train || (!ti.busy(state) && !(state.points || []).length);
        const begun = ti.busy(state) || state.step > 0 || (state.points || []).length > 0;
        parts.stats.hidden = parts.count.hidden = !begun; // what stopped before the first step has only its reason to show
        stats(state);
        notice(state);
        verdict(state);
        remarks(state);
        messages(state);
        if (train) { previews(state); curve(state); }
        reveal(state);
    }

    // The short form in the standalone page's header, seen from every tab.
    function pill(state) {
        const node = document.querySelector(".ti-pill");
        if (!node || !state) return;
        node.hidden = !ti.busy(state);
        if (!node.hidden) node.textContent = Math.floor(100 * share(state)) + " % " + state.name;
    }

    // txt2img's progress
    function drawing(state) {
        const node = document.querySelector(".ti-drawing");
        if (!node || !state || !state.drawing) return;
        const { busy, done, total } = state.drawing;
        node.hidden = !busy;
        if (!busy) return;
        if (!node.firstChild) node.append(el("div", { class: "ti-bar", role: "progressbar", "aria-label": "Drawing", "aria-valuemin": 0, "aria-valuemax": 100 }, el("span", { class: "ti-fill" })), el("span", { class: "ti-drawtext" }));
        node.querySelector(".ti-fill").style.width = (total ? (100 * done) / total : 0) + "%";
        node.querySelector(".ti-bar").setAttribute("aria-valuenow", total ? Math.round((100 * done) / total) : 0);
        node.querySelector(".ti-drawtext").textContent = total ? "Step " + done + " of " + total : "Loading the checkpoint";
    }

    function redraw() { view.pointed = false; draw(ti.state(), true); }
    window.addEventListener("resize", () => { clearTimeout(view.resize); view.resize = setTimeout(redraw, 120); });
    document.addEventListener("click", (event) => { if (event.target.closest && event.target.closest('[role="tab"], .tab-nav button')) setTimeout(redraw, 60); });
    const ready = () => { ti.listen(draw); ti.listen(drawing); };
    if (ti.listen) ready();
    else document.addEventListener("DOMContentLoaded", ready);
})();
