//! The code of the workspace as the rules about names see it: modules, what each defines, what each names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, FnArg, ImplItem, Item, ReturnType, TraitItem, Type, UseTree, Visibility};

use crate::metadata::Target;

/// Something that is compiled by itself: a library, a program, a test.
pub struct Unit {
    pub package: String,
    /// As other crates write it in a path, for example `unicorn_core`.
    pub name: String,
    pub is_library: bool,
    /// The root comes first.
    pub modules: Vec<Module>,
    /// Every identifier in its files.
    pub words: BTreeSet<String>,
    /// Packages of the workspace that its own depends on, at whatever distance.
    pub depends_on: BTreeSet<String>,
}

/// A module, be it a file or inline.
pub struct Module {
    pub parent: Option<usize>,
    /// From the root of the workspace.
    pub file: String,
    /// Several where a module and a function, say, have one name.
    pub names: BTreeMap<String, Vec<Named>>,
    /// Modules of which everything is imported.
    pub globs: Vec<Naming>,
    pub items: Vec<Definition>,
    pub impls: Vec<Impl>,
    /// Every path in its code.
    pub namings: Vec<Naming>,
    /// Lines that start a thread in a way that panics where the system has none to give.
    pub bare_spawns: Vec<usize>,
}

/// What a name stands for.
pub enum Named {
    Module {
        index: usize,
        is_public: bool,
    },
    /// An index into the module's items.
    Item(usize),
    Import(Naming),
}

/// A path somewhere in the code.
#[derive(Clone, Debug)]
pub struct Naming {
    pub segments: Vec<String>,
    pub line: usize,
    /// Compiled for tests alone.
    pub in_test: bool,
    pub role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Code,
    /// `use` for the module itself.
    Use,
    /// `pub use`, `pub(crate) use` and the like.
    ReExport {
        is_public: bool,
    },
}

/// A function, type, trait, constant or macro.
pub struct Definition {
    pub name: String,
    pub line: usize,
    pub is_public: bool,
    pub in_test: bool,
    /// What whoever uses the item may meet: types of arguments, of results, of public fields.
    pub signature: Vec<Naming>,
}

/// `impl Type` or `impl Trait for Type`.
pub struct Impl {
    pub type_name: Naming,
    /// What goes with the type: bounds, and of a trait its arguments and associated types.
    pub signature: Vec<Naming>,
    /// Public ones of an inherent `impl`: methods and associated constants.
    pub members: Vec<Definition>,
}

/// Parses the unit whose root is a file; paths are told from `base`. All of it is test code where cargo builds it for tests alone.
pub fn unit(package: &str, target: &Target, base: &Path) -> Result<Unit> {
    let root = &target.src_path;
    let name = target.name.replace('-', "_");
    let is_library = target.kind.iter().any(|kind| kind == "lib");
    let in_test = target.kind.iter().any(|kind| ["test", "bench", "example"].contains(&kind.as_str()));
    let package = package.to_string();
    let (modules, words, depends_on) = Default::default();
    let unit = Unit { package, name, is_library, modules, words, depends_on };
    let mut parser = Parser { unit, base };
    let folder = root.parent().unwrap_or(base).to_path_buf();
    parser.file(root, folder, None, in_test)?;
    Ok(parser.unit)
}

struct Parser<'a> {
    unit: Unit,
    base: &'a Path,
}

impl Parser<'_> {
    /// Reads a file; its modules lie in `folder`.
    fn file(&mut self, path: &Path, folder: PathBuf, parent: Option<usize>, in_test: bool) -> Result<usize> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let file = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        collect_words(text.parse::<TokenStream>().unwrap_or_default(), &mut self.unit.words);
        let shown = path.strip_prefix(self.base).unwrap_or(path).display().to_string();
        self.module(&shown, &file.items, &folder, parent, in_test)
    }

    fn module(
        &mut self,
        file: &str,
        items: &[Item],
        folder: &Path,
        parent: Option<usize>,
        in_test: bool,
    ) -> Result<usize> {
        let index = self.unit.modules.len();
        self.unit.modules.push(Module::new(file.to_string(), parent));
        for item in items {
            let in_test = in_test || is_test(attributes(item));
            match item {
                Item::Mod(module) => {
                    let child = self.child(file, module, folder, index, in_test)?;
                    let named = Named::Module { index: child, is_public: is_public(&module.vis) };
                    self.unit.modules[index].name(&module.ident.to_string(), named);
                }
                other => self.unit.modules[index].take(other, in_test),
            }
        }
        Ok(index)
    }

    fn child(
        &mut self,
        file: &str,
        module: &syn::ItemMod,
        folder: &Path,
        parent: usize,
        in_test: bool,
    ) -> Result<usize> {
        let name = module.ident.to_string();
        if let Some((_, items)) = &module.content {
            return self.module(file, items, &folder.join(&name), Some(parent), in_test);
        }
        if let Some(other) = path_attribute(&module.attrs) {
            let here = self.base.join(file);
            let path = here.parent().unwrap_or(self.base).join(other);
            let folder = path.parent().unwrap_or(self.base).to_path_buf();
            return self.file(&path, folder, Some(parent), in_test);
        }
        let beside = folder.join(format!("{name}.rs"));
        let path = if beside.exists() { beside } else { folder.join(&name).join("mod.rs") };
        self.file(&path, folder.join(&name), Some(parent), in_test)
    }
}

impl Module {
    fn new(file: String, parent: Option<usize>) -> Module {
        Module {
            parent,
            file,
            names: BTreeMap::new(),
            globs: Vec::new(),
            items: Vec::new(),
            impls: Vec::new(),
            namings: Vec::new(),
            bare_spawns: Vec::new(),
        }
    }

    fn name(&mut self, name: &str, named: Named) {
        self.names.entry(name.to_string()).or_default().push(named);
    }

    /// Takes up an item that is no module: what it defines and what it names.
    fn take(&mut self, item: &Item, in_test: bool) {
        if let Item::Impl(block) = item {
            self.take_impl(block, in_test);
        } else if let Some(definition) = definition(item, in_test) {
            self.name(&definition.name.clone(), Named::Item(self.items.len()));
            self.items.push(definition);
        }
        let mut walker = Walker { module: self, in_test, scopes: Vec::new() };
        walker.visit_item(item);
    }

    fn take_impl(&mut self, block: &syn::ItemImpl, in_test: bool) {
        let Type::Path(path) = &*block.self_ty else { return };
        let mut signature = namings(in_test, |w| w.visit_generics(&block.generics));
        let mut members = Vec::new();
        if let Some((trait_path, _)) = &block.trait_ {
            signature.extend(namings(in_test, |w| w.visit_path(trait_path)).split_off(1));
            let types = block.items.iter().filter(|i| matches!(i, ImplItem::Type(_)));
            signature.extend(types.flat_map(|i| namings(in_test, |w| w.visit_impl_item(i))));
        } else {
            members = block.items.iter().filter_map(|i| member(i, in_test)).collect();
        }
        let Some(type_name) = namings(in_test, |w| w.visit_path(&path.path)).into_iter().next() else {
            return;
        };
        self.impls.push(Impl { type_name, signature, members });
    }

    fn import(&mut self, tree: &UseTree, before: &[String], role: Role, in_test: bool) {
        let mut segments = before.to_vec();
        let naming =
            |segments: Vec<String>| Naming { segments, line: tree.span().start().line, in_test, role };
        match tree {
            UseTree::Path(path) => {
                segments.push(path.ident.to_string());
                self.import(&path.tree, &segments, role, in_test);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(tree, before, role, in_test));
            }
            UseTree::Glob(_) => self.globs.push(naming(segments)),
            UseTree::Name(syn::UseName { ident, .. }) => {
                if ident != "self" {
                    segments.push(ident.to_string());
                }
                let Some(name) = segments.last().cloned() else { return };
                self.import_one(&name, naming(segments));
            }
            UseTree::Rename(rename) => {
                if rename.ident != "self" {
                    segments.push(rename.ident.to_string());
                }
                self.import_one(&rename.rename.to_string(), naming(segments));
            }
        }
    }

    fn import_one(&mut self, name: &str, naming: Naming) {
        self.namings.push(naming.clone());
        self.name(name, Named::Import(naming));
    }
}

/// Collects what code names, into its module.
struct Walker<'a> {
    module: &'a mut Module,
    in_test: bool,
    /// Names of the scopes that the closures around hold for starting threads.
    scopes: Vec<String>,
}

impl<'ast> Visit<'ast> for Walker<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.record(segments, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, makro: &'ast syn::Macro) {
        self.visit_path(&makro.path);
        self.tokens(makro.tokens.clone());
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let role = match item.vis {
            Visibility::Inherited => Role::Use,
            _ => Role::ReExport { is_public: is_public(&item.vis) },
        };
        let in_test = self.in_test;
        self.module.import(&item.tree, &[], role, in_test);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let function = path_of(&call.func);
        if function.ends_with(&["thread".into(), "spawn".into()]) && !self.in_test {
            self.module.bare_spawns.push(call.span().start().line);
        }
        let scope = match call.args.first() {
            Some(syn::Expr::Closure(c)) if function.last().is_some_and(|f| f == "scope") => parameter(c),
            _ => None,
        };
        let depth = self.scopes.len();
        self.scopes.extend(scope);
        visit::visit_expr_call(self, call);
        self.scopes.truncate(depth);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let receiver = path_of(&call.receiver);
        if call.method == "spawn"
            && receiver.len() == 1
            && self.scopes.contains(&receiver[0])
            && !self.in_test
        {
            self.module.bare_spawns.push(call.span().start().line);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

impl Walker<'_> {
    fn record(&mut self, segments: Vec<String>, line: usize) {
        self.module.namings.push(Naming { segments, line, in_test: self.in_test, role: Role::Code });
    }

    /// The paths in a macro's arguments, of which nothing else is known.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons, mut field) = (0, 0, false);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 || path.is_empty() {
                        self.end_path(&mut path, line);
                        line = ident.span().start().line;
                    }
                    // Behind a dot stands a field or a method.
                    if !field {
                        path.push(ident.to_string());
                    }
                    (colons, field) = (0, false);
                }
                TokenTree::Punct(p) if p.as_char() == ':' => colons += 1,
                TokenTree::Punct(p) => {
                    self.end_path(&mut path, line);
                    (colons, field) = (0, p.as_char() == '.' && p.spacing() == proc_macro2::Spacing::Alone);
                }
                TokenTree::Group(group) => {
                    // `use a::{b, c}` in a macro is not taken apart.
                    self.end_path(&mut path, line);
                    self.tokens(group.stream());
                    (colons, field) = (0, false);
                }
                TokenTree::Literal(_) => {
                    self.end_path(&mut path, line);
                    (colons, field) = (0, false);
                }
            }
        }
        self.end_path(&mut path, line);
    }

    fn end_path(&mut self, path: &mut Vec<String>, line: usize) {
        if !path.is_empty() {
            self.record(std::mem::take(path), line);
        }
    }
}

/// The segments of an expression that is a path.
fn path_of(expression: &syn::Expr) -> Vec<String> {
    match expression {
        syn::Expr::Path(path) => path.path.segments.iter().map(|s| s.ident.to_string()).collect(),
        _ => Vec::new(),
    }
}

/// The name of a closure's only parameter.
fn parameter(closure: &syn::ExprClosure) -> Option<String> {
    match closure.inputs.first()? {
        syn::Pat::Ident(pattern) => Some(pattern.ident.to_string()),
        _ => None,
    }
}

/// What a part of the syntax tree names.
fn namings(in_test: bool, walk: impl FnOnce(&mut Walker<'_>)) -> Vec<Naming> {
    let mut module = Module::new(String::new(), None);
    walk(&mut Walker { module: &mut module, in_test, scopes: Vec::new() });
    module.namings
}

fn definition(item: &Item, in_test: bool) -> Option<Definition> {
    let (ident, vis) = match item {
        Item::Const(i) => (&i.ident, &i.vis),
        Item::Enum(i) => (&i.ident, &i.vis),
        Item::Fn(i) => (&i.sig.ident, &i.vis),
        Item::Static(i) => (&i.ident, &i.vis),
        Item::Struct(i) => (&i.ident, &i.vis),
        Item::Trait(i) => (&i.ident, &i.vis),
        Item::Type(i) => (&i.ident, &i.vis),
        Item::Union(i) => (&i.ident, &i.vis),
        Item::Macro(i) => (i.ident.as_ref()?, &Visibility::Inherited),
        _ => return None,
    };
    let signature = namings(in_test, |walker| walk_signature(item, walker));
    Some(Definition {
        name: ident.to_string(),
        line: ident.span().start().line,
        is_public: is_public(vis),
        in_test,
        signature,
    })
}

fn walk_signature(item: &Item, walker: &mut Walker<'_>) {
    match item {
        Item::Const(i) => walker.visit_type(&i.ty),
        Item::Static(i) => walker.visit_type(&i.ty),
        Item::Type(i) => walker.visit_item_type(i),
        Item::Enum(i) => {
            walker.visit_generics(&i.generics);
            i.variants.iter().for_each(|v| v.fields.iter().for_each(|f| walker.visit_type(&f.ty)));
        }
        Item::Fn(i) => walk_function(&i.sig, walker),
        Item::Struct(i) => {
            walker.visit_generics(&i.generics);
            i.fields.iter().filter(|f| is_public(&f.vis)).for_each(|f| walker.visit_type(&f.ty));
        }
        Item::Trait(i) => {
            walker.visit_generics(&i.generics);
            i.supertraits.iter().for_each(|bound| walker.visit_type_param_bound(bound));
            for member in &i.items {
                match member {
                    TraitItem::Fn(f) => walk_function(&f.sig, walker),
                    other => walker.visit_trait_item(other),
                }
            }
        }
        _ => {}
    }
}

fn walk_function(signature: &syn::Signature, walker: &mut Walker<'_>) {
    walker.visit_generics(&signature.generics);
    for input in &signature.inputs {
        if let FnArg::Typed(argument) = input {
            walker.visit_type(&argument.ty);
        }
    }
    if let ReturnType::Type(_, result) = &signature.output {
        walker.visit_type(result);
    }
}

/// A public method or constant of an `impl`.
fn member(item: &ImplItem, in_test: bool) -> Option<Definition> {
    let (ident, vis, attrs) = match item {
        ImplItem::Fn(i) => (&i.sig.ident, &i.vis, &i.attrs),
        ImplItem::Const(i) => (&i.ident, &i.vis, &i.attrs),
        _ => return None,
    };
    let signature = namings(in_test, |walker| match item {
        ImplItem::Fn(i) => walk_function(&i.sig, walker),
        ImplItem::Const(i) => walker.visit_type(&i.ty),
        _ => {}
    });
    is_public(vis).then(|| Definition {
        name: ident.to_string(),
        line: ident.span().start().line,
        is_public: true,
        in_test: in_test || is_test(attrs),
        signature,
    })
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// True under `#[test]`, `#[cfg(test)]` and `#[cfg(all(test, ...))]`.
fn is_test(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string().replace(' ', "");
            condition == "test" || condition.starts_with("all(test")
        }
        meta => meta.path().is_ident("test"),
    })
}

/// The value of `#[path = "..."]`.
fn path_attribute(attrs: &[Attribute]) -> Option<String> {
    attrs.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(i) => &i.attrs,
        Item::Enum(i) => &i.attrs,
        Item::Fn(i) => &i.attrs,
        Item::Impl(i) => &i.attrs,
        Item::Macro(i) => &i.attrs,
        Item::Mod(i) => &i.attrs,
        Item::Static(i) => &i.attrs,
        Item::Struct(i) => &i.attrs,
        Item::Trait(i) => &i.attrs,
        Item::Type(i) => &i.attrs,
        Item::Union(i) => &i.attrs,
        Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

fn collect_words(tokens: TokenStream, words: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                words.insert(ident.to_string());
            }
            TokenTree::Group(group) => collect_words(group.stream(), words),
            _ => {}
        }
    }
}
