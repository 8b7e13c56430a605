// Before anything is drawn, so that no page flashes in the other colours. Not a module: those run later.
try {
  const theme = localStorage.getItem('unicorn-theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing has the system's colours.
}
