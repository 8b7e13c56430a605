//! The table of routes: a router and what it answers to, which the OpenAPI document has to tell.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{delete, get, post};

use crate::app::App;

/// Routes, each written down as it is added.
#[derive(Default)]
pub(crate) struct Routes {
    router: Router<Arc<App>>,
    list: Vec<(&'static str, &'static str)>,
}

impl Routes {
    /// Answers GET, and HEAD too.
    pub fn get<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, handler: H) -> Routes {
        let Routes { router, mut list } = self;
        list.push(("get", path));
        Routes { router: router.route(path, get(handler)), list }
    }

    /// Answers POST.
    pub fn post<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, handler: H) -> Routes {
        let Routes { router, mut list } = self;
        list.push(("post", path));
        Routes { router: router.route(path, post(handler)), list }
    }

    /// Answers DELETE.
    pub fn delete<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, handler: H) -> Routes {
        let Routes { router, mut list } = self;
        list.push(("delete", path));
        Routes { router: router.route(path, delete(handler)), list }
    }

    /// Method and path of each, in the order of their adding.
    #[cfg(test)]
    pub fn list(&self) -> &[(&'static str, &'static str)] {
        &self.list
    }

    /// What answers.
    pub fn into_router(self) -> Router<Arc<App>> {
        self.router
    }
}
