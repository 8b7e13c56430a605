//! The kinds of integer types: which steps the product of their codes has.

/// What the product of unpacked codes has to do. Types of one kind share that code.
pub(super) trait Kind: Copy {
    /// Codes are centered.
    const CENTERED: bool;
    /// See [`Coding::wide`](super::encoding::Coding::wide).
    const WIDE: bool;
    /// See [`Coding::halves`](super::encoding::Coding::halves).
    const HALVES: bool;
    /// See [`Coding::offset`](super::encoding::Coding::offset).
    const OFFSET: bool;
}

macro_rules! kinds {
    ($($name:ident: $centered:literal $wide:literal $halves:literal $offset:literal),* $(,)?) => {$(
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl Kind for $name {
            const CENTERED: bool = $centered;
            const WIDE: bool = $wide;
            const HALVES: bool = $halves;
            const OFFSET: bool = $offset;
        }
    )*};
}

kinds!(
    Offset: false false false true,
    Centered: true false false false,
    CenteredOffset: true false false true,
    HalvesCentered: true false true false,
    HalvesOffset: false false true true,
    // Centered at 128 where bytes must be unsigned.
    Wide: true true false false,
);
