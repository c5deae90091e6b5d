// Controls and pictures that a screen reader has no name for.
() => {
  const text = (element) => element.innerText?.trim() || element.textContent.trim();
  const named = (element) =>
    element.getAttribute("aria-label")
    || (element.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join("").trim()
    || [...element.labels ?? []].map(text).join("").trim()
    || (element.matches("button") && (text(element) || element.querySelector("img")?.alt))
    || (element.matches("img") && element.alt)
    || (element.matches("fieldset") && text(element.querySelector("legend")))
    || (element.matches("table") && text(element.caption));
  const wanted = "button, input, textarea, select, img, fieldset, table, section, [tabindex], [role=img], [role=log]";
  return [...document.querySelectorAll(wanted)].filter((element) => !named(element)).map((element) => element.outerHTML.slice(0, 120));
}
