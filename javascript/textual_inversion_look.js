// The pictures under review on the Preprocess tab: clicks and typed captions go to the server as numbered commands.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    if (ti.looking) return;
    ti.looking = true;

    const TYPING = 500, AGAIN = 1500;
    const client = Math.random().toString(36).slice(2); // every page counts its own commands
    let look = "", number = 0, commands = [], timer = 0, typing = null;

    const shown = () => document.querySelector(".ti-look");

    // The number of the last command that the server has carried out; null when the server has another set of pictures, or none.
    function taken() {
        const node = document.querySelector(".ti-look-ack");
        if (!node || node.dataset.look !== look) return node ? null : 0;
        return node.dataset.client === client ? Number(node.dataset.taken) : 0;
    }

    // gradio drops a click while an earlier click is running, so commands are sent again until the answer confirms their numbers.
    function send() {
        clearTimeout(timer);
        const done = taken();
        commands = done === null ? [] : commands.filter((command) => command.n > done);
        say();
        if (!commands.length) return;
        ti.press("ti_look_take");
        timer = setTimeout(send, AGAIN);
    }

    function say() {
        const box = document.querySelector("#ti_look_sent textarea, #ti_look_sent input");
        if (!box) return;
        box.value = JSON.stringify({ look, client, commands });
        box.dispatchEvent(new Event("input", { bubbles: true }));
    }

    function command(what) {
        const now = shown() ? shown().dataset.look : "";
        if (now !== look) [look, number, commands] = [now, 0, []];
        commands = commands.filter((old) => !(what.do === "caption" && old.do === "caption" && old.item === what.item && old.part === what.part));
        commands.push(Object.assign({ n: ++number }, what));
        send();
    }

    function place(node) {
        const tile = node.closest(".ti-tile");
        return { item: tile ? Number(tile.dataset.item) : -1, part: node.dataset.part === undefined ? null : Number(node.dataset.part) };
    }

    function choose(button) {
        const tile = button.closest(".ti-tile"), wanted = button.getAttribute("aria-checked") !== "true";
        button.setAttribute("aria-checked", String(wanted));
        tile.toggleAttribute("data-out", !wanted);
        for (const box of tile.querySelectorAll("input[type=checkbox]")) box.checked = wanted;
        command({ do: "choose", item: place(button).item, part: null, chosen: wanted });
    }

    function choosePart(box) {
        const tile = box.closest(".ti-tile"), any = [...tile.querySelectorAll("input[type=checkbox]")].some((other) => other.checked);
        tile.toggleAttribute("data-out", !any);
        tile.querySelector(".ti-shot").setAttribute("aria-checked", String(any));
        command(Object.assign({ do: "choose", chosen: box.checked }, place(box)));
    }

    function caption(box) {
        clearTimeout(typing && typing.timer);
        typing = null;
        if (box.dataset.sent === box.value || (box.dataset.sent === undefined && box.value === box.defaultValue)) return;
        box.dataset.sent = box.value;
        command(Object.assign({ do: "caption", text: box.value }, place(box)));
    }

    document.addEventListener("input", (event) => {
        const box = event.target;
        if (!box.matches || !box.matches(".ti-look textarea")) return;
        if (typing && typing.box !== box) caption(typing.box);
        if (typing) clearTimeout(typing.timer);
        typing = { box, timer: setTimeout(() => caption(box), TYPING) };
    });
    document.addEventListener("focusout", (event) => {
        if (event.target.matches && event.target.matches(".ti-look textarea")) caption(event.target);
    });
    document.addEventListener("change", (event) => {
        if (event.target.matches && event.target.matches(".ti-look input[type=checkbox]")) choosePart(event.target);
    });
    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest(".ti-look button[data-do], .ti-look-head button[data-do]");
        if (!button) return;
        const what = button.dataset.do;
        if (what === "choose") return choose(button);
        if (what === "show") return command({ do: what, kind: button.dataset.kind });
        if (what === "page") return command({ do: what, page: Number(button.dataset.page) });
        command({ do: what, chosen: "chosen" in button.dataset });
    });
    // Tells the server that this page is not new; the form of a new page would be filled with the review's settings.
    document.addEventListener("click", (event) => {
        if (!event.target.closest || !event.target.closest("#ti_look_button")) return;
        [look, commands] = ["asked", []];
        say();
    }, true);
    // The pictures belong to the Preprocess tab; they are below all tabs because they need the width.
    let seen = "";
    function settle() {
        const button = document.getElementById("ti_preprocess_button"), open = Boolean(button) && button.offsetParent !== null;
        const state = ti.state && ti.state();
        document.body.classList.toggle("ti-preprocessing", open);
        document.body.classList.toggle("ti-writing", Boolean(state) && ti.busy(state) && state.kind === "preprocess");
        const root = shown(), now = root ? root.dataset.look : "";
        if (now && now !== look) { // tells the server which set is shown; otherwise the server would take the page for a new one and redraw it
            [look, number, commands] = [now, 0, []];
            say();
        }
        if (open && now && now !== seen && seen !== "") {
            const box = root.closest(".ti-lookout");
            if (box && box.getBoundingClientRect().top > window.innerHeight * 0.7) box.scrollIntoView({ block: "start", behavior: "smooth" });
        }
        if (open) seen = now || "none";
    }
    document.addEventListener("click", (event) => { if (event.target.closest && event.target.closest('[role="tab"], .tab-nav button')) setTimeout(settle, 60); });
    setInterval(settle, 700); // the host may open a tab by itself, and an answer draws new pictures at any time

    // Preprocess reads the latest commands, so a caption that is still being typed must be among them.
    document.addEventListener("click", (event) => {
        if (event.target.closest && event.target.closest("#ti_preprocess_button") && typing) caption(typing.box);
    }, true);
})();
