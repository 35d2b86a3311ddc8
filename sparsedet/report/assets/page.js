// The shell of all pages: reading the data, building elements, light and dark.

/** The JSON block with this id, parsed when it is asked for. */
function readData(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/** An element with attributes and children; text children are never read as HTML. */
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

/** Replace what is inside an element. */
function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((each) => each !== null && each !== undefined));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light colors" : "Dark colors";
}

function toggleTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
document.getElementById("theme").addEventListener("click", toggleTheme);
