//! Work that reads from a disk, on a thread of its own: a disk that hangs delays nothing else.

use std::io;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

/// Runs `work` to its end on a new thread. What is returned ends with it.
pub(super) fn apart(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<BoxFuture<'static, ()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (runs, over) = oneshot::channel::<()>();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.block_on(work);
        drop(runs);
    })?;
    Ok(Box::pin(async move {
        // It never sends: the end of the thread, however it comes, is what is waited for.
        let _ended = over.await;
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_for_the_work_ends_with_it_and_not_before() {
        let (go, told) = oneshot::channel::<()>();
        let here = std::thread::current().id();
        let work = async move {
            assert_ne!(std::thread::current().id(), here);
            told.await.expect("told");
        };
        let mut over = apart("apart", work).expect("a thread");
        assert!(futures::poll!(&mut over).is_pending());
        go.send(()).expect("it waits");
        over.await;
    }

    #[tokio::test]
    async fn work_that_panics_is_over_as_well() {
        apart("apart", async { panic!("on purpose") }).expect("a thread").await;
    }
}
