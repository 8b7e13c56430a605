// Names of TeX and their characters.

const pairs = (text) => Object.fromEntries(text.trim().split(/\s+/).map((pair) => [pair.slice(0, pair.lastIndexOf(':')), pair.slice(pair.lastIndexOf(':') + 1)]));

export const SYMBOLS = pairs(`
alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι kappa:κ lambda:λ mu:μ nu:ν xi:ξ omicron:ο pi:π varpi:ϖ rho:ρ varrho:ϱ
sigma:σ varsigma:ς tau:τ upsilon:υ phi:ϕ varphi:φ chi:χ psi:ψ omega:ω Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Upsilon:Υ Phi:Φ Psi:Ψ Omega:Ω
infty:∞ partial:∂ nabla:∇ hbar:ℏ ell:ℓ Re:ℜ Im:ℑ aleph:ℵ beth:ℶ wp:℘ emptyset:∅ varnothing:∅ imath:ı jmath:ȷ angle:∠ triangle:△ square:□ Box:□ blacksquare:■ diamond:⋄ star:⋆ top:⊤ bot:⊥ degree:°
dagger:† ddagger:‡ prime:′ flat:♭ sharp:♯ natural:♮ clubsuit:♣ heartsuit:♥ spadesuit:♠ checkmark:✓ S:§ P:¶ pounds:£ complement:∁ eth:ð digamma:ϝ`);

export const OPERATORS = pairs(`
cdot:⋅ times:× div:÷ pm:± mp:∓ ast:∗ circ:∘ bullet:∙ oplus:⊕ ominus:⊖ otimes:⊗ oslash:⊘ odot:⊙ wedge:∧ land:∧ vee:∨ lor:∨ cap:∩ cup:∪ sqcap:⊓ sqcup:⊔ setminus:∖ smallsetminus:∖ uplus:⊎ amalg:⨿ wr:≀ bigcirc:◯
leq:≤ le:≤ geq:≥ ge:≥ neq:≠ ne:≠ ll:≪ gg:≫ lt:< gt:> leqslant:⩽ geqslant:⩾ approx:≈ equiv:≡ sim:∼ simeq:≃ cong:≅ propto:∝ asymp:≍ doteq:≐ coloneqq:≔ triangleq:≜ models:⊨ vdash:⊢ dashv:⊣ Vdash:⊩ vDash:⊨ perp:⊥ parallel:∥ mid:∣ nmid:∤ prec:≺ succ:≻ preceq:⪯ succeq:⪰ lesssim:≲ gtrsim:≳
in:∈ notin:∉ ni:∋ subset:⊂ supset:⊃ subseteq:⊆ supseteq:⊇ subsetneq:⊊ supsetneq:⊋ sqsubseteq:⊑ sqsupseteq:⊒ forall:∀ exists:∃ nexists:∄ neg:¬ lnot:¬ therefore:∴ because:∵
to:→ rightarrow:→ leftarrow:← gets:← leftrightarrow:↔ uparrow:↑ downarrow:↓ updownarrow:↕ Rightarrow:⇒ Leftarrow:⇐ Leftrightarrow:⇔ Uparrow:⇑ Downarrow:⇓ implies:⟹ impliedby:⟸ iff:⟺ mapsto:↦ longmapsto:⟼ longrightarrow:⟶ longleftarrow:⟵ Longrightarrow:⟹ Longleftarrow:⟸ Longleftrightarrow:⟺ hookrightarrow:↪ hookleftarrow:↩ rightharpoonup:⇀ rightharpoondown:⇁ leftharpoonup:↼ rightleftharpoons:⇌ nearrow:↗ searrow:↘ swarrow:↙ nwarrow:↖ rightsquigarrow:⇝ leadsto:⇝
ldots:… dots:… dotsc:… dotso:… cdots:⋯ dotsb:⋯ dotsm:⋯ vdots:⋮ ddots:⋱ lhd:⊲ rhd:⊳ triangleleft:◃ triangleright:▹ bowtie:⋈ ltimes:⋉ rtimes:⋊`);

OPERATORS.colon = ':';

export const LARGE = pairs(`
sum:∑ prod:∏ coprod:∐ int:∫ iint:∬ iiint:∭ oint:∮ bigcup:⋃ bigcap:⋂ bigoplus:⨁ bigotimes:⨂ bigodot:⨀ bigvee:⋁ bigwedge:⋀ biguplus:⨄ bigsqcup:⨆`);

export const FUNCTIONS = new Set('sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp lim limsup liminf max min sup inf argmax argmin det dim ker hom deg gcd arg Pr'.split(' '));

/** The mark, whether it goes below, whether it stretches. */
export const ACCENTS = {
  hat: ['^', false, false], widehat: ['^', false, true], check: ['ˇ', false, false], tilde: ['~', false, false], widetilde: ['~', false, true], bar: ['¯', false, false], overline: ['¯', false, true], vec: ['→', false, false],
  dot: ['˙', false, false], ddot: ['¨', false, false], dddot: ['⃛', false, false], acute: ['´', false, false], grave: ['`', false, false], breve: ['˘', false, false], mathring: ['˚', false, false],
  overrightarrow: ['→', false, true], overleftarrow: ['←', false, true], underline: ['_', true, true], overbrace: ['⏞', false, true], underbrace: ['⏟', true, true],
};

// Where Unicode's alphabets begin: capitals, small letters, digits. Letters that had a place before have it still.
const ALPHABETS = { double: [0x1d538, 0x1d552, 0x1d7d8], script: [0x1d49c, 0x1d4b6, 0], fraktur: [0x1d504, 0x1d51e, 0], bold: [0x1d400, 0x1d41a, 0x1d7ce], sans: [0x1d5a0, 0x1d5ba, 0x1d7e2], mono: [0x1d670, 0x1d68a, 0x1d7f6] };
const EARLIER = {
  double: pairs('C:ℂ H:ℍ N:ℕ P:ℙ Q:ℚ R:ℝ Z:ℤ'),
  script: pairs('B:ℬ E:ℰ F:ℱ H:ℋ I:ℐ L:ℒ M:ℳ R:ℛ e:ℯ g:ℊ o:ℴ'),
  fraktur: pairs('C:ℭ H:ℌ I:ℑ R:ℜ Z:ℨ'),
};

/** Letters and digits in one of Unicode's mathematical alphabets; other characters stay. */
export function styled(text, kind) {
  if (!Object.hasOwn(ALPHABETS, kind)) return text;
  const [capitals, small, digits] = ALPHABETS[kind];
  const one = (c) => {
    const earlier = EARLIER[kind]?.[c];
    if (earlier) return earlier;
    const code = c.codePointAt(0);
    if (c >= 'A' && c <= 'Z') return String.fromCodePoint(capitals + code - 65);
    if (c >= 'a' && c <= 'z') return String.fromCodePoint(small + code - 97);
    if (digits && c >= '0' && c <= '9') return String.fromCodePoint(digits + code - 48);
    if (kind === 'bold' && c >= 'α' && c <= 'ω') return String.fromCodePoint(0x1d6c2 + code - 0x3b1);
    if (kind === 'bold' && c >= 'Α' && c <= 'Ω') return String.fromCodePoint(0x1d6a8 + code - 0x391);
    return c;
  };
  return [...text].map(one).join('');
}
