// Finds sections that hold every word typed; those with a word in their heading first.
(() => {
  const input = document.getElementById("search"), list = document.getElementById("found");
  const article = document.querySelector("article"), up = document.body.dataset.up;
  const most = 30, around = 70;

  const score = (e, words) => {
    const head = (e.t + " " + (e.s || "")).toLowerCase(), text = e.x.toLowerCase();
    let sum = 0;
    for (const w of words) {
      if (head.includes(w)) sum += (e.s || e.t).toLowerCase().includes(w) ? 20 : 10;
      else if (text.includes(w)) sum += 1 + Math.min(4, text.split(w).length - 2);
      else return 0;
    }
    return sum;
  };

  const excerpt = (text, words) => {
    const lower = text.toLowerCase(), at = Math.max(0, Math.min(...words.map(w => lower.indexOf(w)).filter(i => i >= 0), lower.length));
    const begin = at === lower.length ? 0 : Math.max(0, at - around);
    const p = document.createElement("p");
    const part = (begin ? "…" : "") + text.slice(begin, begin + 3 * around) + (text.length > begin + 3 * around ? "…" : "");
    const pattern = new RegExp("(" + words.map(w => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")", "i");
    part.split(pattern).forEach((piece, i) => {
      const node = i % 2 ? document.createElement("mark") : document.createTextNode(piece);
      if (i % 2) node.textContent = piece;
      p.append(node);
    });
    return p;
  };

  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    article.hidden = words.length > 0;
    list.hidden = !words.length;
    list.replaceChildren();
    if (!words.length) return;
    const found = index.map(e => [score(e, words), e]).filter(f => f[0]).sort((a, b) => b[0] - a[0]).slice(0, most);
    for (const [, e] of found) {
      const li = document.createElement("li"), a = document.createElement("a");
      a.href = up + e.u;
      a.textContent = e.s ? e.t + " › " + e.s : e.t;
      a.onclick = () => { input.value = ""; show(); };
      li.append(a, excerpt(e.x, words));
      list.append(li);
    }
    if (!found.length) list.append("Nothing in the manual has all of these words.");
  };

  input.addEventListener("input", show);
  addEventListener("keydown", e => {
    if (e.key === "/" && document.activeElement !== input) { e.preventDefault(); input.focus(); }
    if (e.key === "Escape") { input.value = ""; show(); }
  });
})();
