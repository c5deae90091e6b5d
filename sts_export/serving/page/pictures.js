// Files that a user gives -> pictures as the server takes them.

const KINDS = ["png", "jpeg", "webp", "gif", "bmp", "avif"].map((name) => `image/${name}`);

export class PictureError extends Error {}

// {name, url, ratio}: a data URL of the file as it is, and width / height.
export async function readPicture(file) {
  const name = file.name || "picture";
  if (!KINDS.includes(file.type)) {
    throw new PictureError(`${name} cannot be used; give a PNG, JPEG, WebP, GIF, BMP or AVIF picture`);
  }
  const url = await dataUrl(file);
  const shown = new Image();
  shown.src = url;
  try {
    await shown.decode();
  } catch {
    throw new PictureError(`${name} is damaged or no picture; give another file`);
  }
  return { name, url, ratio: shown.naturalWidth / shown.naturalHeight };
}

export async function readExample({ name, src }) {
  let response;
  try {
    response = await fetch(src);
  } catch {
    throw new PictureError(`the example ${name} cannot be loaded; see whether the server runs`);
  }
  if (!response.ok) throw new PictureError(`the example ${name} is not there; give a picture of your own`);
  const blob = await response.blob();
  return { ...await readPicture(new File([blob], name, { type: blob.type })), example: name };
}

function dataUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new PictureError(`${file.name} cannot be read; give another file`));
    reader.readAsDataURL(file);
  });
}

// Calls take(files) for what is pasted or dropped anywhere on the page.
export function watchTransfers(take) {
  const drops = document.body.classList;
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length === 0) return;
    event.preventDefault();
    take(files);
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return; // text may go into the question
      event.preventDefault();
      drops.add("dropping");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drops.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    drops.remove("dropping");
    const files = [...event.dataTransfer.files];
    if (files.length === 0) return;
    event.preventDefault();
    take(files);
  });
}
