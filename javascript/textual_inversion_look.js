// The pictures looked at on the Preprocess tab: what is clicked and typed there goes to the server as numbered commands.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    if (ti.looking) return;
    ti.looking = true;

    const TYPING = 500, AGAIN = 1500;
    const client = Math.random().toString(36).slice(2); // every page counts its own commands
    let look = "", number = 0, commands = [], timer = 0, typing = null;

    const shown = () => document.querySelector(".ti-look");

    // The number of the last command that the server has taken; null once it has another set of pictures, or none.
    function taken() {
        const node = document.querySelector(".ti-look-ack");
        if (!node || node.dataset.look !== look) return node ? null : 0;
        return node.dataset.client === client ? Number(node.dataset.taken) : 0;
    }

    // gradio drops a click while it is at work on the one before, so every command is said until the answer names its number.
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
    // Says that this page is no new one, whose form would be filled with what was looked at.
    document.addEventListener("click", (event) => {
        if (!event.target.closest || !event.target.closest("#ti_look_button")) return;
        [look, commands] = ["asked", []];
        say();
    }, true);
    // They belong to the Preprocess tab, and lie below all of the tabs for their room.
    let seen = "";
    function settle() {
        const button = document.getElementById("ti_preprocess_button"), open = Boolean(button) && button.offsetParent !== null;
        const state = ti.state && ti.state();
        document.body.classList.toggle("ti-preprocessing", open);
        document.body.classList.toggle("ti-writing", Boolean(state) && ti.busy(state) && state.kind === "preprocess");
        const root = shown(), now = root ? root.dataset.look : "";
        if (now && now !== look) { // says what it shows: else the server would take it for a new page, and draw all of it again
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

    // Preprocess reads what was said last: nothing that is still being typed may be missing from it.
    document.addEventListener("click", (event) => {
        if (event.target.closest && event.target.closest("#ti_preprocess_button") && typing) caption(typing.box);
    }, true);
})();
